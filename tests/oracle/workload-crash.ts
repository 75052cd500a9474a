/** A crash in the middle of a record that spans pages: the next start writes OVERWRITE_CONTRECORD where its rest would have been. */
import type { OracleServer } from './server.ts';
import { each } from './workload.ts';

const ATTEMPTS = 8;

/** Large records with asynchronous commit are flushed by the WAL writer at page granularity, so a kill between two flushes often cuts
 *  one. Whether it did is up to chance: a few attempts; the report says when none did. */
export async function overwriteContrecord(server: OracleServer): Promise<void> {
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    const db = await server.client();
    await each(db, ['SET synchronous_commit = off']);
    let sent = 0;
    const flood = (async () => {
      for (;;) {
        await db.query("SELECT pg_logical_emit_message(false, 'p', repeat('w', 150000))");
        sent++;
      }
    })().catch(() => sent);
    const watcher = await server.client();
    while (sent < 20 + attempt * 7) await watcher.query('SELECT 1');
    await server.stop('SIGKILL');
    await flood;
    await server.start();
    if (/missing contrecord|there is no contrecord/.test(server.log)) return;
  }
}
