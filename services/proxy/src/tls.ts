/** The proxy's TLS identity: an operator's certificate, or a self-signed one made on first start and kept.
 *  Invariant: the private key we write is readable by its owner only. */
import { X509Certificate, createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type SecureContext, createSecureContext } from 'node:tls';
import { LakebaseError, errorMessage } from '@lakebase/base';

export interface TlsIdentity {
  readonly context: SecureContext;
  /** `tls-server-end-point` data (RFC 5929) for SCRAM-SHA-256-PLUS; undefined when the signature's hash is not known to us. */
  readonly endpointBinding: Buffer | undefined;
}

const SELF_SIGNED_DAYS = 3_650;

export async function loadTlsIdentity(files: { certFile: string; keyFile: string } | null, dataDir: string): Promise<TlsIdentity> {
  const chosen = files ?? (await selfSigned(dataDir));
  try {
    const cert = readFileSync(chosen.certFile, 'utf8');
    const key = readFileSync(chosen.keyFile, 'utf8');
    const context = createSecureContext({ cert, key, minVersion: 'TLSv1.2' });
    return { context, endpointBinding: endpointBinding(cert) };
  } catch (cause) {
    throw new LakebaseError('CONFIG', `cannot use the TLS certificate ${chosen.certFile} with ${chosen.keyFile}: ${errorMessage(cause)}`, {
      cause,
    });
  }
}

async function selfSigned(dataDir: string): Promise<{ certFile: string; keyFile: string }> {
  const certFile = join(dataDir, 'proxy-cert.pem'),
    keyFile = join(dataDir, 'proxy-key.pem');
  // The key is renamed into place first: a certificate that exists always has its key.
  if (existsSync(certFile) && existsSync(keyFile)) return { certFile, keyFile };
  mkdirSync(dataDir, { recursive: true, mode: 0o700 });
  // Only the first start ever needs it.
  const { generate } = await import('selfsigned');
  const pems = await generate([{ name: 'commonName', value: 'localhost' }], {
    keyType: 'ec',
    algorithm: 'sha256',
    notAfterDate: new Date(Date.now() + SELF_SIGNED_DAYS * 86_400_000),
    extensions: [
      // Older TLS libraries accept a self-signed certificate as sslrootcert only when it may sign certificates.
      { name: 'basicConstraints', cA: true, critical: true },
      { name: 'keyUsage', digitalSignature: true, keyCertSign: true, critical: true },
      { name: 'extKeyUsage', serverAuth: true },
      {
        name: 'subjectAltName',
        altNames: [
          { type: 2, value: 'localhost' },
          { type: 2, value: '*.localhost' },
          { type: 7, ip: '127.0.0.1' },
          { type: 7, ip: '::1' },
        ],
      },
    ],
  });
  writeFileSync(`${keyFile}.new`, pems.private, { mode: 0o600 });
  writeFileSync(`${certFile}.new`, pems.cert, { mode: 0o644 });
  renameSync(`${keyFile}.new`, keyFile);
  renameSync(`${certFile}.new`, certFile);
  return { certFile, keyFile };
}

/** Hash of the certificate by its own signature's hash, MD5 and SHA-1 replaced by SHA-256 (RFC 5929, 4.1). */
export function endpointBinding(pem: string): Buffer | undefined {
  const cert = new X509Certificate(pem);
  const hash = signatureHash(cert.raw);
  return hash === undefined ? undefined : createHash(hash).update(cert.raw).digest();
}

/** DER of the object identifiers that name a signature algorithm with a fixed hash. */
const SIGNATURE_OIDS: readonly (readonly [string, string])[] = [
  ['06092a864886f70d010104', 'sha256'], // md5WithRSAEncryption
  ['06092a864886f70d010105', 'sha256'], // sha1WithRSAEncryption
  ['06092a864886f70d01010b', 'sha256'],
  ['06092a864886f70d01010c', 'sha384'],
  ['06092a864886f70d01010d', 'sha512'],
  ['06072a8648ce3d0401', 'sha256'], // ecdsa-with-SHA1
  ['06082a8648ce3d040302', 'sha256'],
  ['06082a8648ce3d040303', 'sha384'],
  ['06082a8648ce3d040304', 'sha512'],
];

/** Certificate ::= SEQUENCE { tbsCertificate SEQUENCE, signatureAlgorithm SEQUENCE { OID … }, signature }. */
function signatureHash(der: Buffer): string | undefined {
  const outer = contents(der, 0);
  const tbs = outer === undefined ? undefined : contents(der, outer.start);
  const algorithm = tbs === undefined ? undefined : contents(der, tbs.end);
  if (algorithm === undefined) return undefined;
  const hex = der.subarray(algorithm.start, algorithm.end).toString('hex');
  return SIGNATURE_OIDS.find(([oid]) => hex.startsWith(oid))?.[1];
}

function contents(der: Buffer, at: number): { start: number; end: number } | undefined {
  if (der[at] !== 0x30) return undefined;
  const first = der[at + 1] ?? 0;
  const lengthBytes = first < 0x80 ? 0 : first & 0x7f;
  if (lengthBytes > 4 || at + 2 + lengthBytes > der.length) return undefined;
  const length = lengthBytes === 0 ? first : der.readUIntBE(at + 2, lengthBytes);
  const start = at + 2 + lengthBytes;
  return start + length > der.length ? undefined : { start, end: start + length };
}
