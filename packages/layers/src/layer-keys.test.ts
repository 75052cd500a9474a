/** What encryption promises of layers, index and small objects on disk: nothing readable, nothing that opens at another place or under another
 *  name, another wrapping of the key without touching the object, and a key that may not be used is no damage. */
import assert from 'node:assert/strict';
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { isCode } from '@lakebase/base';
import { crc32c } from '@lakebase/bytes';
import { plainProvider } from '@lakebase/envelope';
import type { Lsn } from '@lakebase/ids';
import { LocalKeys } from '@lakebase/keys';
import fc from 'fast-check';
import {
  ENTRY_RECORD,
  type Entry,
  FrameCache,
  INDEX_MAGIC,
  KIND_REL_PAGE,
  type LayerDescriptor,
  LayerHandle,
  OpenLayer,
  SeriesTable,
  type TimelineIndex,
  encodeKey,
  flushLayer,
  keyFromText,
  keyToText,
  metaSeries,
  openObject,
  readIndex,
  sealObject,
  writeIndex,
} from './index.ts';
import { FOOTER_BYTES, decodeHeader } from './layer-format.ts';

const root = mkdtempSync(join(tmpdir(), 'layer-keys-'));
after(() => rmSync(root, { recursive: true, force: true }));
const source = new LocalKeys();
const MARKER = 'a very private row of a customer';
const hex = (digit: string): string => digit.repeat(32);
let dirs = 0;

interface Place {
  readonly project: string;
  readonly timeline: string;
}
const HERE: Place = { project: hex('a'), timeline: hex('b') };

const filesOf = (place: Place, directory: string) => {
  mkdirSync(directory, { recursive: true });
  return { ...place, directory, keys: source.project(place.project), cache: new FrameCache(1 << 20) };
};

/** A layer with three blocks of several frames each, which say `what`. */
async function layer(place: Place, directory: string, what: string, number = 1, end = 800): Promise<LayerDescriptor> {
  const series = new SeriesTable();
  const open = new OpenLayer(series, 0 as Lsn);
  const id = series.intern(KIND_REL_PAGE, 1663, 5, 1, 0);
  for (let i = 1; i <= 90; i++) open.put(id, i % 3, ENTRY_RECORD, 0, (i * 8) as Lsn, Buffer.from(`${MARKER} ${what} ${i} `.repeat(40)));
  open.freeze(end as Lsn);
  return flushLayer(open, { ...filesOf(place, directory), generation: 0, number });
}

function everything(handle: LayerHandle): Buffer {
  const out: Entry[] = [];
  try {
    for (let b = 0; b < 3; b++) handle.reader().collect(encodeKey(metaSeries(KIND_REL_PAGE, 1663, 5, 1), b), 10_000 as Lsn, 0 as Lsn, out);
    return Buffer.concat(out.map((e) => e.bytes));
  } finally {
    handle.close();
  }
}
const newDir = (): string => join(root, `d${dirs++}`);
const refused = (what: string, run: () => unknown): void =>
  assert.throws(run, (e: unknown) => isCode(e, 'CORRUPT') || isCode(e, 'UNSUPPORTED') || isCode(e, 'UNAVAILABLE'), what);

test('layers that change places, names, timelines, projects, headers or footers are refused; nothing of them is readable on disk', async () => {
  const dir = newDir();
  const [one, two] = [await layer(HERE, dir, 'one', 1), await layer(HERE, dir, 'the second', 2)];
  const files = filesOf(HERE, dir);
  const truth = everything(new LayerHandle(one, files));
  assert.ok(truth.includes(`${MARKER} one`));
  for (const name of readdirSync(dir)) {
    const bytes = readFileSync(join(dir, name));
    for (let at = 0; at < MARKER.length - 12; at++) assert.equal(bytes.indexOf(MARKER.slice(at, at + 12)), -1);
  }
  const path = join(dir, one.name);
  const good = readFileSync(path);
  const other = readFileSync(join(dir, two.name));
  const ownHeader = decodeHeader(good, path).headerBytes;
  const withFile = (bytes: Buffer) => (): unknown => {
    writeFileSync(path, bytes);
    const got = everything(new LayerHandle(one, files));
    throw new Error(`it answered ${got.length} bytes`);
  };

  refused('another layer under this name', withFile(other));
  refused('header of the other', withFile(Buffer.concat([other.subarray(0, ownHeader), good.subarray(ownHeader)])));
  refused('frames of the other', withFile(Buffer.concat([good.subarray(0, ownHeader), other.subarray(ownHeader)])));
  refused('footer of the other', withFile(Buffer.concat([good.subarray(0, -FOOTER_BYTES), other.subarray(-FOOTER_BYTES)])));
  for (const cut of [1, FOOTER_BYTES, 1_000]) refused(`cut by ${cut}`, withFile(good.subarray(0, -cut)));

  // A footer that is consistent in itself, whose number of entries is a lie: only the tag of the index frame knows.
  const lie = Buffer.from(good);
  const footer = lie.subarray(-FOOTER_BYTES);
  footer.writeUInt32BE(footer.readUInt32BE(24) ^ 1, 24);
  footer.writeUInt32BE(crc32c(footer.subarray(0, FOOTER_BYTES - 4)), FOOTER_BYTES - 4);
  refused('entries of the footer', withFile(lie));

  for (const place of [
    { ...HERE, timeline: hex('c') },
    { ...HERE, project: hex('d') },
  ]) {
    const theirs = newDir();
    const d = await layer(place, theirs, 'theirs');
    refused(`of ${place.project}/${place.timeline}`, withFile(readFileSync(join(theirs, d.name))));
    // Also when the index were to point at its key, and with the identity in its header made ours.
    const bytes = readFileSync(join(theirs, d.name));
    bytes.write(HERE.project + HERE.timeline, 8, 'latin1');
    bytes.writeUInt32BE(crc32c(bytes.subarray(0, ownHeader - 4)), ownHeader - 4);
    writeFileSync(path, bytes);
    await source
      .project(HERE.project)
      .load([keyFromText(d.key)])
      .catch(() => {});
    refused('with our identity', () => everything(new LayerHandle({ ...one, key: d.key }, files)));
  }

  writeFileSync(path, good);
  const renamed = { ...one, name: one.name.replace('00000001.0000', '00000009.0000') };
  copyFileSync(path, join(dir, renamed.name));
  refused('another name', () => everything(new LayerHandle(renamed, files)));
  refused('another key', () => everything(new LayerHandle({ ...one, key: two.key }, files)));
  assert.ok(everything(new LayerHandle(one, files)).equals(truth));

  fc.assert(
    fc.property(fc.nat(good.length * 8 - 1), (bit) => {
      const bad = Buffer.from(good);
      bad[bit >> 3] = (bad[bit >> 3] as number) ^ (1 << (bit & 7));
      writeFileSync(path, bad);
      try {
        // The key reference in the header is not used, but bound.
        assert.ok(everything(new LayerHandle(one, files)).equals(truth), `bit ${bit} changed what is read`);
        assert.fail(`bit ${bit} went unnoticed`);
      } catch (error) {
        assert.ok(isCode(error, 'CORRUPT') || isCode(error, 'UNSUPPORTED'), `bit ${bit}: ${String(error)}`);
      }
    }),
    { numRuns: 200 },
  );
});

test('an object opens only as what it was sealed for', async () => {
  const keys = source.project(HERE.project);
  await keys.reserve(1);
  const name = { ...HERE, name: 'suspend-00000001' };
  const payload = Buffer.from(MARKER);
  const sealed = sealObject(7, name, payload, keys.create());
  assert.equal(sealed.indexOf(MARKER.slice(0, 12)), -1);
  assert.deepEqual(openObject(7, name, sealed, keys, 'it'), payload);
  for (const wrong of [{ name: 'bootset-00000001' }, { name: 'suspend-00000002' }, { timeline: hex('c') }, { project: hex('d') }])
    refused(JSON.stringify(wrong), () => openObject(7, { ...name, ...wrong }, sealed, keys, 'it'));
  refused('magic', () => openObject(8, name, sealed, keys, 'it'));
  for (let bit = 0; bit < sealed.length * 8; bit++) {
    const bad = Buffer.from(sealed);
    bad[bit >> 3] = (bad[bit >> 3] as number) ^ (1 << (bit & 7));
    refused(`bit ${bit}`, () => openObject(7, name, bad, keys, 'it'));
    // Whoever can write the file can also make its checksum right.
    bad.writeUInt32BE(crc32c(bad.subarray(0, -4)), bad.length - 4);
    if (bit < (sealed.length - 4) * 8) refused(`bit ${bit}, checksum made right`, () => openObject(7, name, bad, keys, 'it'));
  }
  refused('not encrypted at all', () => openObject(7, name, sealObject(7, name, payload, plainProvider.create()), keys, 'it'));
});

const emptyIndex = (place: Place): TimelineIndex => ({
  ...place,
  version: 0,
  generation: 0,
  pgVersion: 18,
  systemId: '1',
  startLsn: 8,
  startPrevRecordLsn: 0,
  diskConsistentLsn: 8,
  prevRecordLsn: 0,
  nextLayerNumber: 1,
  layers: [],
  suspend: null,
  bootSet: null,
  extra: {},
});

test('an index of another timeline is refused; every version is sealed anew and counts', async () => {
  const dir = newDir();
  mkdirSync(dir, { recursive: true });
  const path = join(dir, 'index');
  const keys = source.project(HERE.project);
  const { index, reference } = await writeIndex(path, emptyIndex(HERE), keys);
  const first = readFileSync(path);
  const second = await writeIndex(path, index, keys);
  assert.equal(second.index.version, 2);
  assert.ok(!second.reference.equals(reference));
  const there = { ...HERE, timeline: hex('c') };
  await writeIndex(path, emptyIndex(there), keys);
  await assert.rejects(readIndex(path, HERE.project, HERE.timeline, keys), { code: 'CORRUPT' });
  const stranger = { ...HERE, project: hex('d') };
  await writeIndex(path, emptyIndex(stranger), source.project(stranger.project));
  await assert.rejects(readIndex(path, HERE.project, HERE.timeline, keys), { code: 'CORRUPT' });
  // An older one is whole and ours: it is what it says, and its version tells.
  writeFileSync(path, first);
  assert.equal((await readIndex(path, HERE.project, HERE.timeline, keys))?.index.version, 1);
  renameSync(path, `${path}-2`);
  await assert.rejects(readIndex(`${path}-2`, HERE.project, HERE.timeline, keys), { code: 'CORRUPT' });
  assert.equal(first.readUInt32BE(0), INDEX_MAGIC);
});

test('a later wrapping of the key opens the layer, also when the older KEK is gone; a revoked key is no damage', async () => {
  const place = { project: hex('e'), timeline: hex('b') };
  const dir = newDir();
  const one = await layer(place, dir, 'one');
  const files = filesOf(place, dir);
  const truth = everything(new LayerHandle(one, files));
  const bytes = readFileSync(join(dir, one.name));
  source.rotate(place.project);
  const [fresh] = await files.keys.rewrap([keyFromText(one.key)]);
  const wrapped = { ...one, key: keyToText(fresh as Buffer) };
  source.destroy(place.project, 2);
  source.revoke(place.project);
  assert.throws(() => everything(new LayerHandle(wrapped, files)), { code: 'KEY_REVOKED' });
  source.restore(place.project);
  assert.throws(() => everything(new LayerHandle(wrapped, files)), { code: 'UNAVAILABLE' }, 'nothing is loaded after a lock');
  await files.keys.load([keyFromText(one.key), keyFromText(wrapped.key)]);
  assert.throws(() => everything(new LayerHandle(one, files)), { code: 'CORRUPT' }, 'of a KEK that was destroyed');
  assert.ok(everything(new LayerHandle(wrapped, files)).equals(truth));
  assert.ok(readFileSync(join(dir, one.name)).equals(bytes));
});
