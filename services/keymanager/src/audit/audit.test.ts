/** The audit log: chain, torn lines, changed lines, cut logs, several files. */
import assert from 'node:assert/strict';
import { appendFileSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import type { AuditEntry } from '@lakebase/api';
import { silentLogger } from '@lakebase/base';
import { type AuditHead, type AuditLine, auditFileName, auditFiles, readAudit, verifyAudit } from './audit-file.ts';
import { AuditLog } from './audit-log.ts';
import { anchorAfter, writeAnchor } from './audit-retention.ts';

const entry = (detail: string): AuditEntry => ({ actor: 'admin', action: 'TEST', account: 'acc', subject: 'p', result: 'OK', detail });

class Bed implements Disposable {
  readonly dir = mkdtempSync(join(tmpdir(), 'lb-audit-'));
  readonly file = join(this.dir, auditFileName(1));
  open(expect: readonly AuditHead[] = []): Promise<AuditLog> {
    return AuditLog.open({ dir: this.dir, log: silentLogger, now: () => 0, expect });
  }
  /** `lines` lines, closed. */
  async written(lines: number): Promise<AuditHead> {
    const log = await this.open();
    for (let i = 0; i < lines; i++) await log.record(entry(`line ${i}`));
    await log.close();
    return log.head;
  }
  text(): string[] {
    return readFileSync(this.file, 'utf8').trimEnd().split('\n');
  }
  [Symbol.dispose](): void {
    rmSync(this.dir, { recursive: true });
  }
}

it('goes on where it ended, and the chain holds', async () => {
  using bed = new Bed();
  await bed.written(3);
  await bed.written(2);
  const verdict = await verifyAudit(bed.dir);
  assert.ok(verdict.ok && verdict.lines === 5 && verdict.head.sequence === 5);
  const lines = [];
  for await (const line of readAudit(bed.dir, 3)) lines.push((JSON.parse(line) as { sequence: number }).sequence);
  assert.deepEqual(lines, [4, 5]);
});

it('many at once keep their order and share syncs', async () => {
  using bed = new Bed();
  const log = await bed.open();
  const sequences = await Promise.all(Array.from({ length: 50 }, (_, i) => log.record(entry(String(i)))));
  assert.deepEqual(
    sequences,
    Array.from({ length: 50 }, (_, i) => i + 1),
  );
  assert.deepEqual(log.durableHead, log.head);
  await log.close();
  assert.equal((await verifyAudit(bed.dir)).ok, true);
});

it('a line torn anywhere is cut off and told; the others stay', async () => {
  using bed = new Bed();
  await bed.written(3);
  const whole = readFileSync(bed.file);
  const last = whole.subarray(0, -1).lastIndexOf(0x0a) + 1;
  for (let at = last + 1; at < whole.length; at += 17) {
    writeFileSync(bed.file, whole.subarray(0, at));
    const log = await bed.open();
    assert.equal(log.problem, undefined);
    await log.close();
    const lines = bed.text();
    assert.equal(lines.length, 3);
    assert.match(lines[2] as string, /AUDIT_REPAIR/);
    assert.equal((await verifyAudit(bed.dir)).ok, true);
  }
});

it('every changed byte, every line taken out, swapped or added is found, by line', async () => {
  using bed = new Bed();
  await bed.written(6);
  const whole = bed.text();
  const write = (lines: readonly string[]): void => writeFileSync(bed.file, `${lines.join('\n')}\n`);
  const refused = async (why: string, sequence?: number): Promise<void> => {
    const verdict = await verifyAudit(bed.dir);
    assert.equal(verdict.ok, false, why);
    if (sequence !== undefined && !verdict.ok) assert.equal(verdict.sequence, sequence, why);
  };
  // The last line is covered by the head that is noted elsewhere: see below.
  for (let i = 0; i < whole.length - 1; i++) {
    const line = whole[i] as string;
    for (let at = 0; at < line.length; at += 13) {
      const changed = line.slice(0, at) + (line[at] === 'x' ? 'y' : 'x') + line.slice(at + 1);
      write(whole.with(i, changed));
      await refused(`byte ${at} of line ${i + 1}`);
    }
    write(whole.toSpliced(i, 1));
    await refused(`line ${i + 1} taken out`, i + 1);
    write(whole.toSpliced(i, 2, whole[i + 1] as string, line));
    await refused('swapped');
  }
  write(whole.toSpliced(2, 0, whole[2] as string));
  await refused('doubled', 4);
});

it('a log cut short, replaced or with another last line is found by what key records noted', async () => {
  using bed = new Bed();
  const head = await bed.written(6);
  const whole = bed.text();
  assert.equal((await verifyAudit(bed.dir, { expect: [head] })).ok, true);
  writeFileSync(bed.file, `${whole.slice(0, 5).join('\n')}\n`);
  assert.equal((await verifyAudit(bed.dir)).ok, true, 'the chain alone cannot tell');
  const cut = await verifyAudit(bed.dir, { expect: [head] });
  assert.ok(!cut.ok && /cut short/.test(cut.problem));
  const log = await bed.open([head]);
  assert.match(log.problem ?? '', /cut short/);
  await log.close();
  assert.match(bed.text().at(-1) ?? '', /AUDIT_BROKEN/);
  rmSync(bed.file);
  assert.equal((await verifyAudit(bed.dir, { expect: [head] })).ok, false, 'removed');
  await bed.written(8);
  const other = await verifyAudit(bed.dir, { expect: [{ ...head, hash: 'f'.repeat(64) }] });
  assert.ok(!other.ok && /replaced/.test(other.problem));
});

it('several files are one chain; one that is missing is noticed', async () => {
  using bed = new Bed();
  await bed.written(4);
  const lines = bed.text();
  const second = join(bed.dir, auditFileName(3));
  writeFileSync(bed.file, `${lines.slice(0, 2).join('\n')}\n`);
  writeFileSync(second, `${lines.slice(2).join('\n')}\n`);
  const log = await bed.open();
  assert.equal(log.head.sequence, 4);
  assert.equal(await log.verifyAll(), true);
  await log.close();
  // A new file that the crash left empty.
  writeFileSync(join(bed.dir, auditFileName(5)), '');
  const more = await bed.open();
  await more.record(entry('after'));
  assert.equal(await more.verifyAll(), true);
  await more.close();
  renameSync(second, join(bed.dir, 'gone'));
  assert.equal((await verifyAudit(bed.dir)).ok, false);
});

it('a damaged log is told and goes on', async () => {
  using bed = new Bed();
  await bed.written(3);
  const lines = bed.text();
  writeFileSync(bed.file, `${lines[0]}\n${(lines[1] as string).replace('admin', 'nobody')}\n${lines[2]}\n`);
  const log = await bed.open();
  assert.match(log.problem ?? '', /line 3/);
  await log.record(entry('still works'));
  await log.close();
  appendFileSync(bed.file, '');
  assert.equal(bed.text().length, 5);
});

describe('retention', () => {
  const retained = (bed: Bed, now: () => number, onLine: (line: AuditLine) => void = () => {}): Promise<AuditLog> =>
    AuditLog.open({
      dir: bed.dir,
      log: silentLogger,
      now,
      onLine,
      retention: { keepDays: 30, keepBytes: 0 },
      isChange: (line) => line.action === 'SHRED',
      fileBytesMax: 1_000,
    });
  const later = (): number => Date.now() + 40 * 86_400_000;

  it('old files go, the chain holds from the anchor on, and the newest change of each subject is still known', async () => {
    using bed = new Bed();
    const log = await retained(bed, Date.now);
    await log.record({ ...entry('gone (record 7)'), action: 'SHRED', subject: 'q' });
    for (let i = 0; i < 20; i++) await log.record(entry(`line ${i}`));
    assert.equal(await log.prune(), 0);
    await log.close();
    const files = auditFiles(bed.dir).length;
    assert.ok(files > 3);
    const seen: AuditLine[] = [];
    const again = await retained(bed, later);
    assert.equal(await again.prune(), files - 1);
    assert.equal(await again.verifyAll(), true);
    await again.close();
    const restarted = await retained(bed, later, (line) => seen.push(line));
    assert.equal(restarted.problem, undefined);
    assert.equal(seen.filter((line) => line.action === 'SHRED' && line.subject === 'q').length, 1);
    assert.equal(seen.filter((line) => line.action === 'AUDIT_PRUNE').length, 1);
    assert.equal(await restarted.verifyAll(), true);
    await restarted.close();
  });

  it('a removal that was cut short is finished at the next start; files removed by somebody else are told', async () => {
    using bed = new Bed();
    const log = await retained(bed, Date.now);
    for (let i = 0; i < 20; i++) await log.record(entry(`line ${i}`));
    await log.close();
    const doomed = auditFiles(bed.dir).slice(0, 3);
    writeAnchor(
      bed.dir,
      await anchorAfter(
        bed.dir,
        doomed.map((f) => f.path),
        () => false,
      ),
    );
    rmSync((doomed[0] as { path: string }).path); // killed after the first file
    const again = await retained(bed, Date.now);
    assert.equal(again.problem, undefined);
    await again.close();
    const left = auditFiles(bed.dir);
    assert.ok(!left.some((f) => doomed.some((d) => d.path === f.path)));
    rmSync((left[0] as { path: string }).path);
    const robbed = await retained(bed, Date.now);
    assert.match(robbed.problem ?? '', /lines are missing/);
    assert.equal(await robbed.prune(), 0);
    await robbed.close();
  });

  it('a damaged anchor is told', async () => {
    using bed = new Bed();
    await bed.written(3);
    writeFileSync(join(bed.dir, 'anchor.json'), '{}');
    const log = await bed.open();
    assert.match(log.problem ?? '', /anchor\.json is damaged/);
    await log.close();
  });
});
