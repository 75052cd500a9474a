/** A safekeeper that lost its disk, and one that is gone for good, under load: new members take their places, no acknowledged commit is lost, and the
 *  new members carry the quorum when another one goes (docs/protocols/membership.md; fault F12). */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { Cluster, type ServiceName, eventually } from '@lakebase/testkit';
import { Ledger } from './ledger.ts';

interface Safekeepers {
  readonly safekeepers: readonly { id: string; state: string; timelines: number; lost: number; leaving: number; spare: boolean }[];
  readonly changes: readonly { configuration: string; problem: string | null }[];
}

describe('members of the WAL quorum are replaced under load', () => {
  let cluster: Cluster;
  let ledger: Ledger;

  before(async () => {
    cluster = await Cluster.start({ env: { LAKEBASE_SAFEKEEPERS: '4' } });
    ledger = new Ledger(cluster);
    await ledger.create();
    ledger.start();
    await ledger.progress(50);
  });
  after(async () => {
    await ledger.stop();
    await cluster[Symbol.asyncDispose]();
  });

  const look = async (): Promise<Safekeepers> => {
    const { code, stdout, stderr } = await cluster.cli(['storage', 'safekeepers', '--json']);
    assert.equal(code, 0, stderr);
    return JSON.parse(stdout) as Safekeepers;
  };
  const settled = (what: string, also: (s: Safekeepers) => boolean = () => true): Promise<Safekeepers> =>
    eventually(
      what,
      async () => {
        const s = await look();
        return s.changes.length === 0 && s.safekeepers.every((k) => k.lost === 0 && k.leaving === 0) && also(s) ? s : undefined;
      },
      90_000,
    );
  /** Commits go on while these are frozen: the others carry the quorum. */
  const without = async (names: readonly ServiceName[], work: () => Promise<void>): Promise<void> => {
    const pids = names.flatMap((name) => cluster.kill(name, 'SIGSTOP'));
    try {
      await work();
    } finally {
      for (const pid of pids) process.kill(pid, 'SIGCONT');
    }
  };

  it('a disk is lost: a new member takes the place of the old one by itself, and carries the quorum', async () => {
    const dir = join(cluster.home, 'data', 'sk3');
    renameSync(dir, join(cluster.home, 'lost-sk3'));
    assert.ok(cluster.kill('sk3').length > 0);
    await ledger.progress(30);
    await eventually('sk3 is back, on an empty disk', () => (existsSync(join(dir, 'identity', 'incarnation')) ? true : undefined));
    await eventually(
      'its timelines were replaced',
      async () => {
        const { safekeepers, changes } = await look();
        const names = existsSync(join(dir, 'identity')) ? readdirSync(join(dir, 'identity')) : [];
        const sk3 = safekeepers.find((k) => k.id === 'sk3');
        return names.length > 1 && changes.length === 0 && sk3?.lost === 0 ? true : undefined;
      },
      90_000,
    );
    await ledger.progress(30);
    await without(['sk1'], () => ledger.progress(30));
    await ledger.verify();
  });

  it('a safekeeper is gone for good: its place goes to the spare one', async () => {
    assert.ok((await look()).safekeepers.some((k) => k.id === 'sk4' && k.spare && k.timelines === 0));
    await without(['sk2'], async () => {
      await ledger.progress(30);
      const { code, stderr } = await cluster.cli(['storage', 'replace-safekeeper', 'sk2']);
      assert.equal(code, 0, stderr);
      await settled('sk4 has the place of sk2', (s) => (s.safekeepers.find((k) => k.id === 'sk4')?.timelines ?? 0) > 0);
      await ledger.progress(30);
    });
    // The old member is told nothing any more, and whoever asks it is not misled.
    await without(['sk1', 'sk2'], () => ledger.progress(30));
    await ledger.verify();
  });

  it('the next compute is elected by the new members, and after a restart of everything too', async () => {
    cluster.kill('postgres');
    await ledger.progress(30);
    await ledger.stop();
    await cluster.stop();
    await cluster.up();
    ledger.start();
    await ledger.progress(30);
    await without(['sk2'], () => ledger.progress(20));
    await ledger.verify();
  });

  it('the Manager dies in the middle of a change: the next one ends it', async () => {
    // With one of the two others away the change cannot end: most of the old members do not answer.
    await without(['sk3'], async () => {
      renameSync(join(cluster.home, 'data', 'sk1'), join(cluster.home, 'lost-sk1'));
      cluster.kill('sk1');
      const change = await eventually('the change has begun', async () =>
        (await look()).changes.find((c) => c.configuration.includes('->')),
      );
      assert.match(change.configuration, /sk1_g\d+/);
      cluster.kill('manager');
    });
    await settled('nothing is left to do', (s) => s.safekeepers.every((k) => k.id === 'sk2' || k.timelines > 0));
    await ledger.progress(30);
    await without(['sk3'], () => ledger.progress(30));
    await ledger.verify();
  });

  it('a role is made while a healthy member is replaced and another one hangs: neither waits for the other', async () => {
    // The agent that makes roles also tells Postgres whom to wait for. In between the hanging member is one of the two whom commits wait for.
    await without(['sk3'], async () => {
      const roles = new AbortController();
      const making = (async () => {
        let made = 0;
        while (!roles.signal.aborted || made === 0) await cluster.lakebase('roles', 'create', `role-${made++}`);
        return made;
      })();
      making.catch(() => {}); // looked at below
      await cluster.lakebase('storage', 'replace-safekeeper', 'sk1');
      await eventually('sk2 has the place of sk1', async () => {
        const { changes } = await look();
        return changes.some((c) => /sk2_g/.test(c.configuration) && !c.configuration.includes('->')) || undefined;
      });
      await ledger.progress(30);
      roles.abort();
      assert.ok((await making) > 0);
    });
    await ledger.verify();
  });
});
