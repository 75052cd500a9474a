import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { PostgresLog, publicLine } from './postgres-log.ts';

const at = '2026-11-22 17:00:00.000 UTC [123] ';

describe("Postgres's log", () => {
  it('messages without data may be seen by anybody, of others the severity', () => {
    assert.equal(
      publicLine(`${at}LOG:  database system is ready to accept connections`),
      'LOG: database system is ready to accept connections',
    );
    assert.equal(
      publicLine(`${at}LOG:  server process (PID 77) was terminated by signal 9: Killed`),
      'LOG: server process (PID 77) was terminated by signal 9: Killed',
    );
    assert.equal(publicLine('pgshim[7]: cannot fetch 3 blocks'), 'pgshim[7]: cannot fetch 3 blocks');
    assert.equal(publicLine(`${at}ERROR:  duplicate key value violates unique constraint "x"`), 'ERROR: (text withheld: it may hold data)');
    assert.equal(publicLine(`${at}DETAIL:  Key (card)=(4711) already exists.`), undefined);
    assert.equal(publicLine(`${at}STATEMENT:  SELECT 'secret'`), undefined);
    assert.equal(publicLine(`${at}LOG:  duration: 1 ms  statement: SELECT 'secret'`), undefined);
    assert.equal(publicLine(`\tpgshim[1]: a second line that a client made up`), undefined);
    assert.equal(publicLine(`${at}LOG:  database system is 'secret'\nx`), undefined);
  });

  it('lines are put together from chunks, kept within bounds, and gone when cleared', () => {
    const log = new PostgresLog();
    log.push(Buffer.from('one\ntw'));
    log.push(Buffer.from('o\nthree'));
    assert.deepEqual(log.tail(10), ['one', 'two']);
    assert.deepEqual(log.tail(1), ['two']);
    for (let i = 0; i < 3_000; i++) log.push(Buffer.from(`line ${i}\n`));
    assert.equal(log.tail(10_000).length, 2_000);
    for (let i = 0; i < 500; i++) log.push(Buffer.from(`${'x'.repeat(20_000)}\n`));
    assert.ok(log.tail(10_000).join('').length <= 1 << 20);
    log.push(Buffer.alloc(1 << 20, 'y')); // a line without end
    log.clear();
    assert.deepEqual(log.tail(10), []);
    assert.throws(() => log.tail(-1), { code: 'INVALID_ARGUMENT' });
  });

  it('the reason for an end has the text only while nobody could connect', () => {
    const log = new PostgresLog();
    const seen: string[] = [];
    log.onPublicLine = (line) => seen.push(line);
    log.push(Buffer.from(`${at}FATAL:  could not load library "absent"\n`));
    assert.match(log.reason(5), /could not load library/);
    log.ready();
    log.push(Buffer.from(`${at}PANIC:  secret\n${at}LOG:  all server processes terminated; reinitializing\n`));
    assert.doesNotMatch(log.reason(5), /secret|absent/);
    assert.match(log.reason(5), /PANIC: \(text withheld.*all server processes terminated/);
    assert.deepEqual(seen, [
      'FATAL: (text withheld: it may hold data)',
      'PANIC: (text withheld: it may hold data)',
      'LOG: all server processes terminated; reinitializing',
    ]);
  });
});
