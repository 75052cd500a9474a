import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { LakebaseError } from '@lakebase/base';
import { type Lsn, MAX_LSN, lsn, newProjectUid, newTimelineId } from '@lakebase/ids';
import fc from 'fast-check';
import {
  type Frame,
  FrameParser,
  FrameReceiver,
  MSG,
  PAGES_HEAD_BYTES,
  type PageRequest,
  decodeBootSet,
  decodeErrorFrame,
  decodeRequest,
  decodeStartBundle,
  decodeSuspendState,
  encodeBootSet,
  encodeErrorFrame,
  encodeFrame,
  encodeHello,
  encodeRequest,
  encodeStartBundle,
  encodeSuspendState,
  finishPagesFrame,
  internalToken,
  timelineScope,
  tryDecodeHello,
  verifyToken,
} from './index.ts';

/** Plain objects, as the codecs make them. */
const record: typeof fc.record = ((model: never) => fc.record(model, { noNullPrototype: true })) as never;
const u32 = fc.nat(0xffff_ffff);
const tag = record({ spc: u32, db: u32, rel: u32, fork: fc.constantFrom(0 as const, 1 as const, 2 as const, 3 as const) });
const anyLsn = fc.oneof(
  fc.constant(MAX_LSN),
  fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER - 1 }).map((n): Lsn => lsn(n)),
);
const id = fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER });
const request: fc.Arbitrary<PageRequest> = fc.oneof(
  record({
    type: fc.constant('getPages' as const),
    id,
    tag,
    block: fc.nat(1_000_000),
    count: fc.integer({ min: 1, max: 128 }),
    requestLsn: anyLsn,
    notModifiedSince: anyLsn,
  }),
  record({ type: fc.constant('getRelSize' as const), id, tag, lsn: anyLsn }),
  record({ type: fc.constant('getStartBundle' as const), id, lsn: anyLsn, waitMs: fc.nat(100_000) }),
);

describe('page service codec', () => {
  it('every request survives any split of the stream', () => {
    fc.assert(
      fc.property(fc.array(request, { maxLength: 4 }), fc.integer({ min: 1, max: 40 }), (requests, step) => {
        const bytes = Buffer.concat(requests.map(encodeRequest));
        const parser = new FrameParser(65_536);
        const got: PageRequest[] = [];
        for (let at = 0; at < bytes.length; at += step)
          parser.push(Buffer.from(bytes.subarray(at, at + step)), (f) => got.push(decodeRequest(f)));
        assert.deepEqual(got, requests);
      }),
    );
  });
  it('garbage yields frames or a typed error, and a failed parser stays failed', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        const parser = new FrameParser(1_000);
        try {
          parser.push(Buffer.from(bytes), (f) => {
            try {
              decodeRequest(f);
            } catch (error) {
              assert.ok(error instanceof LakebaseError);
            }
          });
        } catch (error) {
          assert.ok(error instanceof LakebaseError);
          assert.throws(() => parser.push(Buffer.alloc(1), () => {}), LakebaseError);
        }
      }),
    );
  });
  it('what a receiver reads into its own memory are the frames that were sent, whatever the reads', () => {
    const frame = record({ type: fc.nat(255), id, bytes: fc.oneof(fc.nat(40), fc.nat(200_000)) });
    fc.assert(
      fc.property(fc.array(frame, { maxLength: 6 }), fc.array(fc.integer({ min: 1, max: 100_000 }), { minLength: 1 }), (frames, reads) => {
        const sent = frames.map((f, n) => ({ ...f, payload: Buffer.alloc(f.bytes, n + 1) }));
        const stream = Buffer.concat(sent.flatMap((f) => encodeFrame(f.type, f.id, f.payload)));
        const got: Frame[] = [];
        const receiver = new FrameReceiver(1 << 20, (f) => got.push(f));
        for (let at = 0, n = 0; at < stream.length; n++) {
          const { space } = receiver;
          const read = Math.min(space.length, reads[n % reads.length] as number, stream.length - at);
          assert.ok(read > 0);
          stream.copy(space, 0, at, at + read);
          at += read;
          receiver.filled(read);
        }
        assert.deepEqual(
          got,
          sent.map(({ type, id, payload }) => ({ type, id, payload })),
        );
      }),
      { numRuns: 60 },
    );
  });
  it('a receiver refuses an impossible length before it has room for it, and stays failed', () => {
    for (const length of [0, 8, (1 << 20) + 1, 0xffff_ffff]) {
      const receiver = new FrameReceiver(1 << 20, () => assert.fail('no frame'));
      receiver.space.writeUInt32BE(length, 0);
      assert.throws(() => receiver.filled(13), { code: 'CORRUPT' });
      assert.throws(() => receiver.filled(1), { code: 'CORRUPT' });
    }
  });
  it('a frame of pages in one buffer is the frame in parts', () => {
    const pages = [Buffer.alloc(8192, 1), Buffer.alloc(8192, 2)];
    const whole = finishPagesFrame(Buffer.concat([Buffer.alloc(PAGES_HEAD_BYTES), ...pages]), 77);
    assert.ok(whole.equals(Buffer.concat(encodeFrame(MSG.PAGES, 77, Buffer.from([0, 2]), ...pages))));
  });
  it('an oversized frame is refused before its body arrives', () => {
    const head = Buffer.alloc(13);
    head.writeUInt32BE(0x7fff_ffff, 0);
    assert.throws(() => new FrameParser(65_536).push(head, () => {}), { code: 'CORRUPT' });
  });
  it('hello: complete, cut anywhere, damaged', () => {
    const hello = { token: 'secret-token', project: newProjectUid(), timeline: newTimelineId() };
    const bytes = encodeHello(hello);
    assert.deepEqual(tryDecodeHello(bytes), { hello, consumed: bytes.length });
    for (let n = 0; n < bytes.length; n++) assert.equal(tryDecodeHello(bytes.subarray(0, n)), undefined);
    assert.throws(() => tryDecodeHello(Buffer.from('GET / HTTP/1.1\r\n\r\n')), LakebaseError);
    const long = Buffer.from(bytes);
    long.writeUInt16BE(5_000, 6);
    assert.throws(() => tryDecodeHello(long), LakebaseError);
    const path = Buffer.from(bytes);
    path.write('../../../../../../etc/passwd', bytes.length - 64);
    assert.throws(() => tryDecodeHello(path), { code: 'INVALID_ID' });
  });
  it('errors keep their code; defects tell nothing', () => {
    const parse = (buffers: Buffer[]): LakebaseError => {
      let error: LakebaseError | undefined;
      new FrameParser(65_536).push(Buffer.concat(buffers), (f) => {
        error = decodeErrorFrame(f);
      });
      assert.ok(error);
      return error;
    };
    assert.equal(parse(encodeErrorFrame(1, new LakebaseError('TIMEOUT', 'waited'))).code, 'TIMEOUT');
    const internal = parse(encodeErrorFrame(1, new Error('secret detail')));
    assert.equal(internal.code, 'INTERNAL');
    assert.doesNotMatch(internal.message, /secret/);
  });
});

const page = record({ tag, block: u32, bytes: fc.constant(Buffer.alloc(8192, 7)) });
const file = record({
  path: fc.constantFrom('PG_VERSION', 'pg_xact/0000', 'base/5/pg_filenode.map'),
  bytes: fc.uint8Array({ maxLength: 100 }).map((b) => Buffer.from(b)),
});
const state = record({
  lsn: fc.nat(1e9).map((n) => lsn(n)),
  files: fc.array(file, { maxLength: 3 }),
  pages: fc.array(page, { maxLength: 2 }),
});

describe('start bundle codec', () => {
  const bundle = record({
    cleanSuspend: fc.boolean(),
    systemId: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
    lsn: fc.nat(1e9).map((n) => lsn(n)),
    prevRecordLsn: fc.nat(1e9).map((n) => lsn(n)),
    major: fc.constantFrom(16, 17, 18),
    checkpoint: fc.uint8Array({ minLength: 88, maxLength: 88 }).map((b) => Buffer.from(b)),
    files: fc.array(file, { maxLength: 3 }),
    relations: fc.array(record({ tag, nblocks: u32 }), { maxLength: 5 }),
    bootPages: fc.array(page, { maxLength: 2 }),
  });
  it('round trips', () => {
    fc.assert(fc.property(bundle, (b) => assert.deepEqual(decodeStartBundle(encodeStartBundle(b)), b)));
    fc.assert(fc.property(state, (s) => assert.deepEqual(decodeSuspendState(encodeSuspendState(s)), s)));
    fc.assert(
      fc.property(fc.array(record({ tag, block: u32 }), { maxLength: 10 }), (blocks) =>
        assert.deepEqual(decodeBootSet(encodeBootSet(blocks)), blocks),
      ),
    );
  });
  it('any flipped byte and any truncation is found', () => {
    const bytes = encodeSuspendState({ lsn: lsn(1), files: [{ path: 'a', bytes: Buffer.from('x') }], pages: [] });
    for (let i = 0; i < bytes.length; i++) {
      const bad = Buffer.from(bytes);
      bad[i] = (bad[i] ?? 0) ^ 0x40;
      assert.throws(() => decodeSuspendState(bad), LakebaseError);
      assert.throws(() => decodeSuspendState(bytes.subarray(0, i)), LakebaseError);
    }
  });
  it('a path never leaves the data directory', () => {
    for (const path of ['/etc/passwd', '../x', 'base/../../x', 'a//b', './a']) {
      const bytes = encodeSuspendState({ lsn: lsn(1), files: [{ path, bytes: Buffer.alloc(0) }], pages: [] });
      assert.throws(() => decodeSuspendState(bytes), { code: 'CORRUPT' }, path);
    }
  });
});

describe('internal tokens', () => {
  const secret = 'ab'.repeat(32);
  it('prove one scope', () => {
    const scope = timelineScope('p', 't');
    const token = internalToken(secret, scope);
    assert.equal(verifyToken(secret, token, ['service', scope]), scope);
    assert.equal(verifyToken(secret, token, ['service']), undefined);
    assert.equal(verifyToken(secret, token, [timelineScope('p', 'other')]), undefined);
    assert.equal(verifyToken('cd'.repeat(32), token, [scope]), undefined);
    assert.equal(verifyToken(secret, '', ['service']), undefined);
  });
});
