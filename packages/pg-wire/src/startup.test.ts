import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import {
  PROTOCOL_3_0,
  PROTOCOL_3_2,
  ProtocolError,
  STARTUP_PACKET_MAX,
  type StartupMessage,
  StartupParser,
  decodeBackend,
  decodeStartupPacket,
  encodeCancelRequest,
  encodeGssEncRequest,
  encodeNegotiateProtocolVersion,
  encodeSslRequest,
  encodeStartupMessage,
  joinOptions,
  needsNegotiation,
  parseOptionWords,
  settingsFromOptions,
  splitOptions,
} from './index.ts';

const startup = (bytes: Buffer): StartupMessage => {
  const packet = decodeStartupPacket(bytes);
  assert.equal(packet.kind, 'startup');
  return packet as StartupMessage;
};

describe('start-up packets', () => {
  it('are the bytes libpq sends', () => {
    assert.equal(encodeSslRequest().toString('hex'), '0000000804d2162f');
    assert.equal(encodeGssEncRequest().toString('hex'), '0000000804d21630');
    assert.equal(encodeCancelRequest(0x01020304, Buffer.from('05060708', 'hex')).toString('hex'), '0000001004d2162e0102030405060708');
    assert.equal(encodeStartupMessage([['user', 'a']]).toString('hex'), '0000001000030000' + Buffer.from('user\0a\0\0').toString('hex'));
  });

  it('come back as they went, whatever the split point', () => {
    const bytes = Buffer.concat([
      encodeSslRequest(),
      encodeGssEncRequest(),
      encodeStartupMessage(
        [
          ['user', 'ünï'],
          ['options', '-c a=b'],
          ['_pq_.command_tag', '1'],
        ],
        PROTOCOL_3_2,
      ),
    ]);
    for (let at = 0; at <= bytes.length; at++) {
      const parser = new StartupParser();
      const kinds: string[] = [];
      for (const chunk of [bytes.subarray(0, at), bytes.subarray(at)]) {
        parser.push(chunk);
        for (let p = parser.next(); p !== undefined; p = parser.next()) {
          kinds.push(p.kind);
          if (p.kind === 'startup') {
            assert.deepEqual(
              [...p.parameters],
              [
                ['user', 'ünï'],
                ['options', '-c a=b'],
              ],
            );
            assert.deepEqual(p.extensions, ['_pq_.command_tag']);
          }
        }
      }
      assert.deepEqual(kinds, ['ssl', 'gssenc', 'startup']);
      assert.equal(parser.buffered, 0);
    }
  });

  it('leave what follows them', () => {
    const parser = new StartupParser();
    parser.push(Buffer.concat([encodeStartupMessage([['user', 'a']]), Buffer.from('more')]));
    assert.equal(parser.next()?.kind, 'startup');
    assert.equal(parser.takeRest().toString(), 'more');
    assert.equal(parser.buffered, 0);
  });

  it('negotiate down to 3.2 and name unknown extensions', () => {
    for (const [asked, spoken, answer] of [
      [PROTOCOL_3_0, PROTOCOL_3_0, false],
      [PROTOCOL_3_2, PROTOCOL_3_2, false],
      [0x3270f, PROTOCOL_3_2, true],
    ] as const) {
      const m = startup(encodeStartupMessage([['user', 'a']], asked));
      assert.equal(m.negotiated, spoken);
      assert.equal(needsNegotiation(m), answer);
    }
    const m = startup(
      encodeStartupMessage(
        [
          ['user', 'a'],
          ['_pq_.x', 'y'],
        ],
        PROTOCOL_3_0,
      ),
    );
    assert.ok(needsNegotiation(m));
    const bytes = encodeNegotiateProtocolVersion(m);
    assert.deepEqual(decodeBackend(bytes[0] as number, bytes.subarray(5)), {
      kind: 'negotiateProtocolVersion',
      version: PROTOCOL_3_0,
      unknown: ['_pq_.x'],
    });
  });

  it('are refused when cut, padded, too long, of another major version or not UTF-8', () => {
    const good = encodeStartupMessage([['user', 'alice']]);
    for (let n = 8; n < good.length; n++) {
      const cut = Buffer.from(good.subarray(0, n));
      cut.writeInt32BE(n, 0);
      assert.throws(() => decodeStartupPacket(cut), ProtocolError, `cut to ${n}`);
    }
    const padded = Buffer.concat([good, Buffer.alloc(1)]);
    padded.writeInt32BE(padded.length, 0);
    assert.throws(() => decodeStartupPacket(padded), ProtocolError);
    for (const length of [0, 7, -1, STARTUP_PACKET_MAX + 1, 0x7fff_ffff]) {
      const parser = new StartupParser();
      const header = Buffer.alloc(4);
      header.writeInt32BE(length);
      parser.push(header);
      assert.throws(() => parser.next(), ProtocolError);
      assert.throws(() => parser.next(), ProtocolError);
      assert.throws(() => parser.push(good), ProtocolError);
    }
    for (const code of [0x20000, 0x40000, 1234 << 16]) {
      const other = Buffer.from(good);
      other.writeInt32BE(code, 4);
      assert.throws(
        () => decodeStartupPacket(other),
        (e) => e instanceof ProtocolError && e.sqlstate === '0A000',
      );
    }
    const latin = Buffer.from(good);
    latin[latin.indexOf('alice')] = 0xe9;
    assert.throws(
      () => decodeStartupPacket(latin),
      (e) => e instanceof ProtocolError && e.sqlstate === '22021',
    );
    assert.throws(() => encodeStartupMessage([['user', 'a\0b']]), TypeError);
    assert.throws(() => encodeStartupMessage([['user', 'x'.repeat(10_000)]]), ProtocolError);
    assert.throws(() => decodeStartupPacket(Buffer.concat([Buffer.from('0000000c04d2162e00000001', 'hex')])), ProtocolError);
  });

  it('mutated, give a packet or a ProtocolError', () => {
    const good = encodeStartupMessage(
      [
        ['user', 'alice'],
        ['database', 'app'],
        ['options', '-c x=y'],
      ],
      PROTOCOL_3_2,
    );
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.nat(good.length - 1), fc.nat(255)), { maxLength: 4 }), fc.nat(good.length), (edits, cut) => {
        const bytes = Buffer.from(good);
        for (const [at, value] of edits) bytes[at] = value;
        const parser = new StartupParser();
        try {
          parser.push(bytes.subarray(0, cut));
          while (parser.next() !== undefined);
          parser.push(bytes.subarray(cut));
          while (parser.next() !== undefined);
        } catch (error) {
          assert.ok(error instanceof ProtocolError);
        }
      }),
      { numRuns: 1_000 },
    );
  });
});

describe('options', () => {
  it('split at white space, with backslash escapes, and join back', () => {
    assert.deepEqual(splitOptions('  -c a=b\t-c  c=x\\ y\\\\ '), ['-c', 'a=b', '-c', 'c=x y\\']);
    assert.deepEqual(splitOptions('end\\'), ['end']);
    fc.assert(fc.property(fc.array(fc.string({ minLength: 1 })), (words) => assert.deepEqual(splitOptions(joinOptions(words)), words)));
  });

  it('read every way of writing a setting', () => {
    const text = '-c a=1 --b-c=2 -cd=3 endpoint=ep -v nothing=';
    assert.deepEqual(
      [...settingsFromOptions(text)],
      [
        ['a', '1'],
        ['b_c', '2'],
        ['d', '3'],
      ],
    );
    assert.deepEqual(
      parseOptionWords(text).map((o) => o.words.join('|')),
      ['-c|a=1', '--b-c=2', '-cd=3', 'endpoint=ep', '-v', 'nothing='],
    );
    assert.deepEqual([...settingsFromOptions(undefined)], []);
    assert.deepEqual([...settingsFromOptions('-c')], []);
  });
});
