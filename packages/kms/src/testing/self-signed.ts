/** A self-signed certificate for 127.0.0.1, made for one test run: fakes of services that insist on https. */
import { type KeyObject, generateKeyPairSync, randomBytes, sign } from 'node:crypto';
import type { FakeTls } from './fake-kms.ts';

export function selfSigned(): FakeTls {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const body = certificateBody(publicKey);
  const cert = sequence(body, ECDSA_SHA256, bitString(sign('sha256', body, privateKey)));
  return { key: privateKey.export({ type: 'pkcs8', format: 'pem' }) as string, cert: pem(cert) };
}

const ECDSA_SHA256 = sequence(tagged(0x06, Buffer.from('2a8648ce3d040302', 'hex')));

function certificateBody(publicKey: KeyObject): Buffer {
  const name = sequence(tagged(0x31, sequence(tagged(0x06, Buffer.from('550403', 'hex')), tagged(0x0c, Buffer.from('127.0.0.1')))));
  const alternativeName = sequence(
    tagged(0x06, Buffer.from('551d11', 'hex')),
    tagged(0x04, sequence(tagged(0x87, Buffer.from([127, 0, 0, 1])))),
  );
  const authority = sequence(tagged(0x06, Buffer.from('551d13', 'hex')), tagged(0x04, sequence(tagged(0x01, Buffer.from([0xff])))));
  const day = 86_400_000;
  return sequence(
    tagged(0xa0, tagged(0x02, Buffer.from([2]))),
    tagged(0x02, Buffer.concat([Buffer.from([1]), randomBytes(8)])),
    ECDSA_SHA256,
    name,
    sequence(time(Date.now() - day), time(Date.now() + 7 * day)),
    name,
    publicKey.export({ type: 'spki', format: 'der' }),
    tagged(0xa3, sequence(authority, alternativeName)),
  );
}

function tagged(tag: number, ...parts: Buffer[]): Buffer {
  const body = Buffer.concat(parts);
  const length = body.length < 128 ? [body.length] : body.length < 256 ? [0x81, body.length] : [0x82, body.length >> 8, body.length & 0xff];
  return Buffer.concat([Buffer.from([tag, ...length]), body]);
}
function sequence(...parts: Buffer[]): Buffer {
  return tagged(0x30, ...parts);
}
const bitString = (bytes: Buffer): Buffer => tagged(0x03, Buffer.from([0]), bytes);
const time = (ms: number): Buffer =>
  tagged(
    0x17,
    Buffer.from(
      `${new Date(ms)
        .toISOString()
        .replaceAll(/[-:T]|\.\d+/g, '')
        .slice(2)}`,
    ),
  );
const pem = (der: Buffer): string =>
  `-----BEGIN CERTIFICATE-----\n${der.toString('base64').replaceAll(/(.{64})/g, '$1\n')}\n-----END CERTIFICATE-----\n`;
