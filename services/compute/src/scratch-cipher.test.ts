import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import fc from 'fast-check';
import { SCRATCH_UNIT, ScratchCipher, ScratchFile, readScratchFile, writeScratchFile } from './scratch-cipher.ts';

/** As in native/pgshim/test/harness.h: the shim's test expects the same answers. */
const KEY = '0123456789abcdefghijklmnopqrstuvwxyz-0123456789ABCDEFGHIJKLMNOPQ';
const INODE = 0x123456789n;
const testCipher = (): ScratchCipher => new ScratchCipher(Buffer.from(KEY));

describe('scratch cipher', () => {
  const dir = mkdtempSync(join(tmpdir(), 'lb-shim-cipher-'));
  after(() => rmSync(dir, { recursive: true }));

  it('gives the known answers of the shim', () => {
    const page = Buffer.from(Array.from({ length: SCRATCH_UNIT }, (_, i) => (i * 7) & 255));
    const out = testCipher().encrypt(INODE, 3 * SCRATCH_UNIT, page);
    assert.equal(out.subarray(0, 16).toString('hex'), 'a72dcc6840644d642aca6809570567f2');
    assert.equal(out.subarray(5008, 5024).toString('hex'), 'f80d15120b652d57a761def048b9b60a');
    assert.equal(out.subarray(8176).toString('hex'), 'c1717bc0b8c0fa2faa97cc79ff885504');
    const tail = testCipher().encrypt(INODE, 3 * SCRATCH_UNIT, Buffer.alloc(31));
    assert.equal(tail.subarray(16).toString('hex'), '29ece0ed37966b9803ed6d647c1d4f', 'zeros as a tail are not zeros on the disk');
  });

  it('is its own inverse at any length; another file, place or key reads nothing', () =>
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 16, maxLength: 3 * SCRATCH_UNIT }), fc.nat(1000), (bytes, unit) => {
        const plain = Buffer.from(bytes);
        const cipher = testCipher();
        const offset = unit * SCRATCH_UNIT;
        const out = cipher.encrypt(INODE, offset, plain);
        assert.ok(cipher.decrypt(INODE, offset, out).equals(plain));
        if (plain.every((b) => b === 0)) return;
        assert.ok(!cipher.decrypt(INODE + 1n, offset, out).equals(plain));
        assert.ok(!cipher.decrypt(INODE, offset + SCRATCH_UNIT, out).equals(plain));
        assert.ok(!new ScratchCipher().decrypt(INODE, offset, out).equals(plain));
      }),
      { numRuns: 60 },
    ));

  it('holes are zeros, between bytes that are not', () => {
    const cipher = testCipher();
    const plain = Buffer.alloc(SCRATCH_UNIT, 7);
    const out = cipher.encrypt(INODE, 0, plain);
    out.fill(0, 160, 320);
    plain.fill(0, 160, 320);
    assert.ok(cipher.decrypt(INODE, 0, out).equals(plain));
    assert.ok(cipher.decrypt(INODE, 0, Buffer.alloc(100 * 16)).equals(Buffer.alloc(100 * 16)));
  });

  it('files: written, renamed, patched, cut; never in plaintext', () => {
    const cipher = new ScratchCipher();
    const path = join(dir, 'file');
    const text = 'a setting that nobody may read\n'.repeat(700);
    writeScratchFile(cipher, path, text);
    assert.equal(readFileSync(path).length, text.length);
    assert.ok(!readFileSync(path).includes('nobody'));
    renameSync(path, join(dir, 'renamed'));
    assert.equal(readScratchFile(cipher, join(dir, 'renamed')).toString(), text);
    writeScratchFile(cipher, join(dir, 'renamed'), 'shorter');
    assert.equal(readScratchFile(cipher, join(dir, 'renamed')).toString(), 'shorter');
    writeScratchFile(cipher, path, '');
    assert.equal(readScratchFile(cipher, path).length, 0);

    using file = new ScratchFile(cipher, join(dir, 'segment'), 'w');
    file.truncate(10 * SCRATCH_UNIT);
    const expected = Buffer.alloc(10 * SCRATCH_UNIT);
    const write = (how: 'write' | 'patch', bytes: Buffer, at: number): void => {
      file[how](bytes, at);
      bytes.copy(expected, at);
    };
    write('write', Buffer.alloc(SCRATCH_UNIT, 'page'), 2 * SCRATCH_UNIT);
    assert.throws(() => file.write(Buffer.alloc(SCRATCH_UNIT), 100), { code: 'INTERNAL' });
    using patched = new ScratchFile(null, join(dir, 'plain'), 'w');
    patched.truncate(SCRATCH_UNIT);
    patched.write(Buffer.from('plaintext'), 0);
    assert.ok(readFileSync(join(dir, 'plain')).includes('plaintext'));
    assert.ok(readScratchFile(cipher, join(dir, 'segment')).equals(expected));
    writeFileSync(join(dir, 'again'), Buffer.alloc(4 * SCRATCH_UNIT));
    using again = new ScratchFile(cipher, join(dir, 'again'), 2 /* O_RDWR */);
    const whole = Buffer.alloc(4 * SCRATCH_UNIT);
    for (const [at, length] of [
      [40, 24],
      [8100, 300],
      [0, 8],
      [16_000, 16_000],
    ] as const) {
      const bytes = Buffer.alloc(length, `record at ${at}`);
      again.patch(bytes, at);
      bytes.copy(whole, at);
      assert.ok(again.readAll().equals(whole));
    }
    assert.throws(() => again.patch(Buffer.alloc(10), 4 * SCRATCH_UNIT), { code: 'INTERNAL' });
  });

  it('a wiped key is gone; a bad one is refused', () => {
    const key = Buffer.from(KEY);
    const cipher = new ScratchCipher(key);
    cipher.wipe();
    assert.ok(key.every((b) => b === 0));
    assert.throws(() => cipher.encrypt(INODE, 0, Buffer.alloc(16, 1)), { code: 'CLOSED' });
    assert.throws(() => new ScratchCipher(Buffer.alloc(64)), { code: 'INVALID_ARGUMENT' });
    assert.throws(() => new ScratchCipher(Buffer.alloc(63, 1)), { code: 'INVALID_ARGUMENT' });
  });
});
