import assert from 'node:assert/strict';
import { test } from 'node:test';
import { crc32c } from '@lakebase/bytes';
import { type Lsn, type Term, parseProjectUid, parseTimelineId } from '@lakebase/ids';
import fc from 'fast-check';
import { CONTROL_HEADER_BYTES, type ControlFile, decodeControlFile, encodeControlFile, lineagesOf } from './control.ts';
import { firstTermOf, lineagesFromJson, lineagesToJson } from './lineage.ts';

const SAMPLE: ControlFile = {
  project: parseProjectUid('00112233445566778899aabbccddeeff'),
  timeline: parseTimelineId('ffeeddccbbaa99887766554433221100'),
  systemId: 0xfedc_ba98_7654_3210n,
  pgVersion: 18,
  term: 7 as Term,
  history: [
    { term: 1 as Term, startLsn: 0x100_0028 as Lsn },
    { term: 7 as Term, startLsn: 0x1_0000_0050 as Lsn },
  ],
  startLsn: 0x100_0028 as Lsn,
  prevRecordLsn: 0xff_ffb0 as Lsn,
  commitLsn: 0x1_0000_0100 as Lsn,
  flushHint: 0x1_0000_0200 as Lsn,
  damage: { kind: 'lost', term: 6 as Term, reason: 'é' },
  offloadedLsn: 0x300_0000 as Lsn,
  pagesLsn: 0x200_0010 as Lsn,
  membership: { self: 'sk3_g4', configuration: { generation: 5, members: ['sk1', 'sk3_g4'], newMembers: null } },
};

test('the bytes are those of docs/formats/control-file.md', () => {
  const bytes = encodeControlFile(SAMPLE);
  const expected = [
    '4c424346 0003 0001 fedcba9876543210 00000012 00000002 0000000000000007',
    '0000000001000028 0000000000ffffb0 0000000100000100 0000000100000200 0000000000000006',
    '00112233445566778899aabbccddeeff ffeeddccbbaa99887766554433221100',
    '0000000000000001 0000000001000028 0000000000000007 0000000100000050',
    '0002 c3a9 0000000003000000 0000000002000010',
    '06 736b335f6734 0000000000000005 0002 03 736b31 06 736b335f6734 ffff',
  ]
    .join('')
    .replaceAll(' ', '');
  assert.equal(bytes.subarray(0, -4).toString('hex'), expected);
  assert.equal(bytes.length, CONTROL_HEADER_BYTES + 2 * 16 + 2 + 2 + 16 + 7 + 8 + 2 + 4 + 7 + 2 + 4);
  assert.deepEqual(decodeControlFile(bytes, 'control'), SAMPLE);
});

test('any value survives the round trip', () => {
  const lsn = fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER });
  fc.assert(
    fc.property(
      fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
      lsn,
      fc.uniqueArray(fc.integer({ min: 1, max: 1e9 })),
      fc.boolean(),
      (id, a, terms, hurt) => {
        const history = terms.sort((x, y) => x - y).map((term, i) => ({ term: term as Term, startLsn: (i * 8) as Lsn }));
        const damage = hurt ? ({ kind: 'rebuilt', term: 0 as Term, reason: 'r' } as const) : null;
        const control = { ...SAMPLE, systemId: id, commitLsn: a as Lsn, history, damage };
        assert.deepEqual(decodeControlFile(encodeControlFile(control), 'control'), control);
      },
    ),
    { numRuns: 50 },
  );
});

test('every flipped bit and every cut is found, and the error names the file', () => {
  const bytes = encodeControlFile(SAMPLE);
  const named = { code: 'CORRUPT', message: /^control file \/x\/control: / };
  for (let i = 0; i < bytes.length * 8; i++) {
    const bad = Buffer.from(bytes);
    bad[i >> 3] = (bad[i >> 3] as number) ^ (1 << (i & 7));
    assert.throws(() => decodeControlFile(bad, '/x/control'), named, `bit ${i}`);
  }
  for (let n = 0; n < bytes.length; n++) assert.throws(() => decodeControlFile(bytes.subarray(0, n), '/x/control'), named);
  assert.throws(() => decodeControlFile(Buffer.concat([bytes, Buffer.alloc(1)]), '/x/control'), named);
});

test('files of earlier versions are read', () => {
  const now = encodeControlFile(SAMPLE);
  const old = (version: number, cut: number): Buffer => {
    const bytes = Buffer.concat([now.subarray(0, -cut - 4), Buffer.alloc(4)]);
    bytes.writeUInt16BE(version, 4);
    bytes.writeUInt32BE(crc32c(bytes.subarray(0, -4)), bytes.length - 4);
    return bytes;
  };
  assert.deepEqual(decodeControlFile(old(2, 30), 'control'), { ...SAMPLE, membership: null });
  const first = { ...SAMPLE, offloadedLsn: SAMPLE.startLsn, pagesLsn: SAMPLE.startLsn, membership: null };
  assert.deepEqual(decodeControlFile(old(1, 46), 'control'), first);
});

test('a joint configuration, and none, survive the round trip', () => {
  const members = ['sk1', 'sk2', 'sk3'];
  const configuration = { generation: 2 ** 40, members, newMembers: ['sk1', 'sk2', 'sk4_g7'] };
  for (const membership of [null, { self: 'sk2', configuration }]) {
    const control = { ...SAMPLE, membership };
    assert.deepEqual(decodeControlFile(encodeControlFile(control), 'control'), control);
  }
});

test('lineages are kept where there is more than one, and must fit together', () => {
  const lineages = [
    { number: 0, startLsn: 0x28 as Lsn },
    { number: 6, startLsn: SAMPLE.startLsn },
  ];
  const control = { ...SAMPLE, lineages };
  const bytes = encodeControlFile(control);
  assert.equal(bytes.readUInt16BE(4), 4);
  assert.deepEqual(decodeControlFile(bytes, 'control'), control);
  assert.equal(encodeControlFile({ ...SAMPLE, lineages: [{ number: 0, startLsn: SAMPLE.startLsn }] }).readUInt16BE(4), 3);
  assert.deepEqual(lineagesOf(SAMPLE), [{ number: 0, startLsn: SAMPLE.startLsn }]);
  assert.deepEqual(lineagesFromJson(lineagesToJson(lineages)), lineages);
  assert.equal(firstTermOf(lineages), 1_000_000_000);
  const other = (startLsn: number, number = 6): ControlFile => ({
    ...SAMPLE,
    lineages: [
      { number: 0, startLsn: 0x28 as Lsn },
      { number, startLsn: startLsn as Lsn },
    ],
  });
  for (const bad of [other(0x1000), other(SAMPLE.startLsn, 0), { ...SAMPLE, lineages: [lineages[1], lineages[1]] as typeof lineages }])
    assert.throws(() => encodeControlFile(bad));
});
