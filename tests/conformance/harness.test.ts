/** The harness itself: driver output, line differences, masks. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { initPage, RM_HEAP_ID, RM_SPGIST_ID } from '@lakebase/pg-format';
import { parseTap } from './driver.ts';
import { differentLines } from './outputs.ts';
import { isEmptyPage, isSoundFsmPage, maskMain, resourceManagerOf, sequenceAgrees } from './page-masks.ts';
import { findSourceTree } from './source-tree.ts';

describe('conformance harness', () => {
  it('reads what pg_regress says of each test', () => {
    const output =
      '# parallel group (2 tests):\nok 1         + boolean          38 ms\nnot ok 2     + char             12 ms\nok 3     - test_setup 300 ms\n1..3\n';
    assert.deepEqual(parseTap(output), [
      { test: 'boolean', ok: true },
      { test: 'char', ok: false },
      { test: 'test_setup', ok: true },
    ]);
  });

  it('names the lines only one side has, each as often as it has them', () => {
    assert.deepEqual(differentLines('a\nb\nb', 'b\nc'), ['< a', '< b', '> c']);
    assert.deepEqual(differentLines('a\nb', 'b\na'), ['the order of lines differs']);
    assert.deepEqual(differentLines('a', 'a'), []);
  });

  it('masks by access method and keeps what matters', () => {
    assert.equal(resourceManagerOf('r', 'heap_tableam_handler'), RM_HEAP_ID);
    assert.equal(resourceManagerOf('i', 'spghandler'), RM_SPGIST_ID);
    const page = Buffer.alloc(8192);
    assert.ok(isEmptyPage(page));
    initPage(page, 0);
    assert.ok(isEmptyPage(page));
    page.writeUInt32LE(5, 4); // an LSN: it was logged
    assert.ok(!isEmptyPage(page));
    const other = Buffer.from(page);
    other.writeUInt16LE(7, 10); // hint flags
    maskMain(RM_HEAP_ID, page, 0);
    maskMain(RM_HEAP_ID, other, 0);
    assert.ok(page.equals(other));
  });

  it('sequences: storage stands where the logged values end, or exactly where the compute does', () => {
    const compute = { last: 10n, logged: 22n, called: true };
    assert.ok(sequenceAgrees(compute, { last: 32n, logged: 0n, called: true }, 1n));
    assert.ok(sequenceAgrees(compute, compute, 1n));
    assert.ok(!sequenceAgrees(compute, { last: 31n, logged: 0n, called: true }, 1n));
    assert.ok(!sequenceAgrees(compute, { last: 10n, logged: 0n, called: true }, 1n));
  });

  it('a free space map page must be a tree of maxima', () => {
    const page = Buffer.alloc(8192);
    initPage(page, 0);
    assert.ok(isSoundFsmPage(page));
    page[28 + 4095] = 9; // a leaf without its parents
    assert.ok(!isSoundFsmPage(page));
    for (let node = 4095; node > 0; ) {
      node = (node - 1) >> 1;
      page[28 + node] = 9;
    }
    assert.ok(isSoundFsmPage(page));
  });

  it('says how to get a source tree when there is none', () => {
    const tree = findSourceTree(18, { source: '/nonexistent' });
    assert.equal(typeof tree, 'string');
    assert.match(tree as string, /apt-get source postgresql-18/);
  });
});
