import assert from 'node:assert/strict';
import { X509Certificate, createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { generate } from 'selfsigned';
import { endpointBinding, loadTlsIdentity } from './tls.ts';

const dir = mkdtempSync(join(tmpdir(), 'proxy-tls-'));
after(() => rmSync(dir, { recursive: true, force: true }));

describe('TLS identity', () => {
  it('is made once, kept, readable by its owner only, and good for localhost', async () => {
    const first = await loadTlsIdentity(null, join(dir, 'a'));
    const pem = readFileSync(join(dir, 'a', 'proxy-cert.pem'), 'utf8');
    assert.equal(statSync(join(dir, 'a', 'proxy-key.pem')).mode & 0o777, 0o600);
    const cert = new X509Certificate(pem);
    assert.equal(cert.checkHost('localhost'), 'localhost');
    assert.equal(cert.checkIP('127.0.0.1'), '127.0.0.1');
    assert.deepEqual(first.endpointBinding, createHash('sha256').update(cert.raw).digest());
    await loadTlsIdentity(null, join(dir, 'a'));
    assert.equal(readFileSync(join(dir, 'a', 'proxy-cert.pem'), 'utf8'), pem);
  });

  it('binds by the hash of the certificate’s own signature', async () => {
    for (const [algorithm, hash] of [
      ['sha1', 'sha256'],
      ['sha256', 'sha256'],
      ['sha384', 'sha384'],
      ['sha512', 'sha512'],
    ] as const) {
      const pems = await generate([{ name: 'commonName', value: 'x' }], { keyType: 'ec', algorithm });
      assert.deepEqual(endpointBinding(pems.cert), createHash(hash).update(new X509Certificate(pems.cert).raw).digest(), algorithm);
    }
  });

  it('refuses files that are missing or do not belong together, and says which', async () => {
    const files = { certFile: join(dir, 'no.pem'), keyFile: join(dir, 'no.key') };
    await assert.rejects(loadTlsIdentity(files, dir), { code: 'CONFIG' });
    writeFileSync(files.certFile, readFileSync(join(dir, 'a', 'proxy-cert.pem')));
    writeFileSync(files.keyFile, (await generate([], { keyType: 'ec' })).private);
    await assert.rejects(loadTlsIdentity(files, dir), /cannot use the TLS certificate .*no\.pem/);
  });
});
