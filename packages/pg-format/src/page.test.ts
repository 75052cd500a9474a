import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { isCode } from '@lakebase/base';
import { lsn } from '@lakebase/ids';
import fc from 'fast-check';
import * as p from './page.ts';

const item = (n: number, fill: number): Buffer => Buffer.alloc(n, fill);

/** Item contents in slot order; '' for unused slots. */
function contents(page: Buffer): string[] {
  const out: string[] = [];
  for (let i = 1; i <= p.maxOffset(page); i++) {
    const id = p.itemId(page, i);
    out.push(p.itemFlags(id) === p.LP_UNUSED ? '' : page.toString('hex', p.itemOffset(id), p.itemOffset(id) + p.itemLength(id)));
  }
  return out;
}

function check(page: Buffer): void {
  p.checkPagePointers(page);
  const used: [number, number][] = [];
  for (let i = 1; i <= p.maxOffset(page); i++) {
    const id = p.itemId(page, i);
    if (p.itemLength(id) > 0) used.push([p.itemOffset(id), p.maxAlign(p.itemLength(id))]);
  }
  used.sort((a, b) => b[0] - a[0]);
  let upper = p.pdSpecial(page);
  for (const [at, length] of used) {
    assert.equal(at + length, upper, 'items lie without gap or overlap');
    upper = at;
  }
  assert.equal(upper, p.pdUpper(page));
}

const sizes = fc.array(fc.integer({ min: 8, max: 300 }), { minLength: 1, maxLength: 20 });

function fill(lengths: readonly number[]): { page: Buffer; model: string[] } {
  const page = Buffer.alloc(8192, 0xee);
  p.initPage(page, 16);
  const model: string[] = [];
  lengths.forEach((n, i) => {
    const bytes = item(n, i + 1);
    assert.equal(p.pageAddItem(page, bytes, 0, n, 0, 0), i + 1);
    model.push(bytes.toString('hex'));
  });
  return { page, model };
}

describe('page edits', () => {
  test('a new page has the header of PageInit', () => {
    const page = Buffer.alloc(8192, 1);
    assert.equal(p.isNewPage(Buffer.alloc(8192)), true);
    p.initPage(page, 13);
    assert.deepEqual([p.pdLower(page), p.pdUpper(page), p.pdSpecial(page), page.readUInt16LE(18)], [24, 8176, 8176, 0x2004]);
    p.setPageLsn(page, lsn(0x1_2345_6789));
    assert.deepEqual([page.readUInt32LE(0), page.readUInt32LE(4)], [1, 0x2345_6789]);
    assert.equal(p.pageLsn(page), 0x1_2345_6789);
  });

  test('insert in the middle, delete, delete many, overwrite: as a list', () => {
    fc.assert(
      fc.property(
        sizes,
        fc.array(fc.tuple(fc.integer({ min: 0, max: 3 }), fc.nat(1000), fc.integer({ min: 8, max: 200 })), { maxLength: 15 }),
        (lengths, steps) => {
          const { page, model } = fill(lengths);
          steps.forEach(([kind, where, size], step) => {
            const at = model.length === 0 ? 0 : where % model.length;
            const bytes = item(size, 100 + step);
            if (kind === 0) {
              if (p.pageAddItem(page, bytes, 0, size, at + 1, 0) !== 0) model.splice(at, 0, bytes.toString('hex'));
            } else if (model.length === 0) return;
            else if (kind === 1) {
              p.indexTupleDelete(page, at + 1);
              model.splice(at, 1);
            } else if (kind === 2) {
              const gone = model.map((_, i) => i).filter((i) => (i * 7 + where) % 3 === 0);
              p.indexMultiDelete(
                page,
                gone.map((i) => i + 1),
              );
              for (const i of gone.reverse()) model.splice(i, 1);
            } else if (p.indexTupleOverwrite(page, at + 1, bytes, 0, size)) model[at] = bytes.toString('hex');
            check(page);
            assert.deepEqual(contents(page), model);
          });
        },
      ),
      { numRuns: 200 },
    );
  });

  test('repairFragmentation keeps slots, closes gaps, drops trailing unused ones and sets the hint', () => {
    fc.assert(
      fc.property(sizes, fc.array(fc.nat(19)), (lengths, drop) => {
        const { page, model } = fill(lengths);
        for (const i of drop)
          if (i < model.length) {
            p.setItemId(page, i + 1, p.ITEM_UNUSED);
            model[i] = '';
          }
        p.repairFragmentation(page);
        while (model.at(-1) === '') model.pop();
        check(page);
        assert.deepEqual(contents(page), model);
        assert.equal((p.pdFlags(page) & p.PD_HAS_FREE_LINES) !== 0, model.includes(''));
      }),
      { numRuns: 200 },
    );
  });

  test('takes free slots of a heap page and refuses what does not fit', () => {
    const { page } = fill([100, 100, 100]);
    p.setItemId(page, 2, p.ITEM_UNUSED);
    p.setPdFlag(page, p.PD_HAS_FREE_LINES);
    assert.equal(p.pageAddItem(page, item(50, 9), 0, 50, 0, p.PAI_IS_HEAP), 2);
    assert.equal(p.pageAddItem(page, item(50, 9), 0, 50, 0, p.PAI_IS_HEAP), 4);
    assert.equal(p.pdFlags(page) & p.PD_HAS_FREE_LINES, 0, 'a wrong hint is reset');
    assert.equal(p.pageAddItem(page, item(50, 9), 0, 50, 3, p.PAI_OVERWRITE), 0);
    assert.equal(p.pageAddItem(page, item(50, 9), 0, 50, 9, 0), 0);
    assert.equal(p.pageAddItem(page, item(8100, 9), 0, 8100, 0, 0), 0);
  });

  test('truncateLinePointers keeps one', () => {
    const { page } = fill([8, 8, 8]);
    for (const i of [1, 2, 3]) p.setItemId(page, i, p.ITEM_UNUSED);
    p.truncateLinePointers(page);
    assert.equal(p.maxOffset(page), 1);
    assert.notEqual(p.pdFlags(page) & p.PD_HAS_FREE_LINES, 0);
  });

  test('random bytes as a page: an edit works or is CORRUPT', () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 24, maxLength: 200 }),
        fc.integer({ min: 0, max: 5 }),
        fc.integer({ min: 0, max: 30 }),
        (head, kind, n) => {
          const page = Buffer.alloc(8192, 3);
          Buffer.from(head).copy(page);
          if (n % 2 === 0) {
            page.writeUInt16LE(24 + (n % 8) * 4, 12);
            page.writeUInt16LE(100 + n * 8, 14);
            page.writeUInt16LE(8176, 16);
          }
          try {
            if (kind === 0) p.pageAddItem(page, item(20, 1), 0, 20, n, 0);
            else if (kind === 1) p.indexTupleDelete(page, n);
            else if (kind === 2) p.indexMultiDelete(page, [1, 2, 3, n]);
            else if (kind === 3) p.repairFragmentation(page);
            else if (kind === 4) p.indexTupleOverwrite(page, n, item(30, 1), 0, 30);
            else p.truncateLinePointers(page);
          } catch (error) {
            assert.ok(isCode(error, 'CORRUPT'), String(error));
          }
          assert.equal(page.length, 8192);
        },
      ),
      { numRuns: 2000 },
    );
  });

  test('xid order', () => {
    assert.equal(p.xidPrecedes(5, 6), true);
    assert.equal(p.xidPrecedes(0xffff_fff0, 10), true);
    assert.equal(p.xidPrecedes(10, 0xffff_fff0), false);
    assert.equal(p.xidPrecedes(2, 0xffff_fff0), true);
  });
});
