import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { MessageParser, ProtocolError, type WireMessage } from './index.ts';

const frame = (type: number, body: Uint8Array): Buffer => {
  const out = Buffer.alloc(5 + body.length);
  out[0] = type;
  out.writeInt32BE(4 + body.length, 1);
  out.set(body, 5);
  return out;
};
function pull(parser: MessageParser, chunks: readonly Buffer[]): WireMessage[] {
  const out: WireMessage[] = [];
  for (const chunk of chunks) {
    parser.push(chunk);
    for (let m = parser.next(); m !== undefined; m = parser.next()) out.push(m);
  }
  return out;
}
function pullEach(parser: MessageParser, chunk: Buffer): string[] {
  const out: string[] = [];
  parser.push(chunk);
  for (let m = parser.next(); m !== undefined; m = parser.next()) out.push(...flat([m]));
  return out;
}
const flat = (messages: readonly WireMessage[]): string[] => messages.map((m) => `${m.type}:${m.body.toString('hex')}`);

describe('MessageParser', () => {
  const stream = Buffer.concat([frame(0x51, Buffer.from('select 1\0')), frame(0x53, Buffer.alloc(0)), frame(0x64, Buffer.alloc(300, 9))]);
  const whole = flat(pull(new MessageParser({ limit: 10_000 }), [stream]));

  it('gives the same messages for every split point, and byte by byte', () => {
    for (let at = 0; at <= stream.length; at++) {
      const parser = new MessageParser({ limit: 10_000 });
      assert.deepEqual(flat(pull(parser, [stream.subarray(0, at), stream.subarray(at)])), whole, `split at ${at}`);
      assert.equal(parser.midMessage, false);
    }
    assert.deepEqual(
      flat(
        pull(
          new MessageParser({ limit: 10_000 }),
          [...stream].map((b) => Buffer.from([b])),
        ),
      ),
      whole,
    );
  });

  it('with memory that is used again gives the same messages, each good until the next is pulled', () => {
    const memory = Buffer.alloc(64);
    for (let piece = 1; piece <= memory.length; piece++) {
      const parser = new MessageParser({ limit: 10_000, reuseMemory: true });
      const got: string[] = [];
      for (let at = 0; at < stream.length; at += piece) {
        // As a socket that reads into the same memory again.
        const chunk = memory.subarray(0, stream.copy(memory, 0, at, Math.min(stream.length, at + piece)));
        got.push(...pullEach(parser, chunk));
        memory.fill(0xee);
      }
      assert.deepEqual(got, whole, `pieces of ${piece}`);
      assert.equal(parser.midMessage, false);
    }
  });

  it('gives no message too many when cut short', () => {
    for (let n = 0; n < stream.length; n++) {
      const got = flat(pull(new MessageParser({ limit: 10_000 }), [stream.subarray(0, n)]));
      assert.deepEqual(got, whole.slice(0, got.length));
      assert.ok(got.length < 3);
    }
  });

  it('gives back exactly what it did not use', () => {
    for (let at = 0; at <= stream.length; at++) {
      const parser = new MessageParser({ limit: 10_000 });
      const got = pull(parser, [stream.subarray(0, Math.floor(at / 2)), stream.subarray(Math.floor(at / 2), at)]);
      const used = got.reduce((n, m) => n + 5 + m.body.length, 0);
      assert.deepEqual(parser.takeRest(), stream.subarray(used, at));
      assert.equal(parser.midMessage, false);
    }
  });

  it('refuses a bad length from the header alone, and stays poisoned', () => {
    for (const length of [3, 0, -1, 101, 0x7fff_ffff, -0x8000_0000]) {
      for (const cut of [0, 1, 4]) {
        const parser = new MessageParser({ limit: 100 });
        const header = Buffer.alloc(5);
        header[0] = 0x51;
        header.writeInt32BE(length, 1);
        assert.throws(() => pull(parser, [header.subarray(0, cut), header.subarray(cut)]), ProtocolError);
        assert.throws(() => parser.next(), ProtocolError);
        assert.throws(() => parser.push(Buffer.from([1])), ProtocolError);
      }
    }
  });

  it('has limits by type that can change between messages', () => {
    const parser = new MessageParser({ limit: (type) => (type === 0x70 ? 1_000 : 8) });
    assert.equal(pull(parser, [frame(0x70, Buffer.alloc(500))]).length, 1);
    parser.setLimit(8);
    assert.throws(() => pull(parser, [frame(0x70, Buffer.alloc(500))]), /length 504 refused; the limit here is 8/);
  });

  it('grows a large body with what arrives, not with what was announced', () => {
    const parser = new MessageParser({ limit: 0x7fff_ffff });
    const header = Buffer.alloc(5);
    header[0] = 0x64;
    header.writeInt32BE(0x7fff_0000, 1);
    const rss = process.memoryUsage().arrayBuffers;
    parser.push(header);
    assert.equal(parser.next(), undefined);
    assert.ok(process.memoryUsage().arrayBuffers - rss < 10_000_000);
    const body = Buffer.alloc(5_000_000, 3);
    const big = new MessageParser({ limit: 0x7fff_ffff });
    const bytes = frame(0x64, body);
    const chunks: Buffer[] = [];
    for (let at = 0; at < bytes.length; at += 65_536) chunks.push(bytes.subarray(at, at + 65_536));
    assert.ok(pull(big, chunks)[0]?.body.equals(body));
  });

  it('yields messages or a ProtocolError for any bytes in any pieces', () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ maxLength: 40 }), { maxLength: 12 }), (pieces) => {
        try {
          pull(
            new MessageParser({ limit: 64 }),
            pieces.map((p) => Buffer.from(p)),
          );
        } catch (error) {
          assert.ok(error instanceof ProtocolError);
        }
      }),
      { numRuns: 500 },
    );
  });
});
