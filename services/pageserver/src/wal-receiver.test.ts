/** Which safekeeper is followed: one that hangs is given up for the next, one that is only quiet is kept. Both speak the real protocol; the timeline only notes. */
import assert from 'node:assert/strict';
import { type AddressInfo, type Server, type Socket, createServer } from 'node:net';
import { afterEach, it } from 'node:test';
import type { PeerAddress } from '@lakebase/api';
import { silentLogger } from '@lakebase/base';
import type { Lsn } from '@lakebase/ids';
import { type CopyBoth, PgServerSession, type StandbyStatus } from '@lakebase/pg-wire';
import type { Timeline } from './timeline.ts';
import { WalReceiver } from './wal-receiver.ts';

const START = 0x100_0000 as Lsn;
const INTERVAL_MS = 10;

const servers: Server[] = [];
const sockets = new Set<Socket>();
let receiver: WalReceiver | undefined;
afterEach(async () => {
  await receiver?.stop();
  for (const socket of sockets) socket.destroy();
  for (const server of servers.splice(0)) server.close();
});

async function safekeeper(
  id: string,
  onStart: (copy: () => CopyBoth) => Promise<void>,
  onStatus: (s: StandbyStatus, copy: CopyBoth) => void = () => {},
): Promise<PeerAddress> {
  const server = createServer((socket) => {
    sockets.add(socket);
    void PgServerSession.serve(socket, {
      authenticate: () => 'trust',
      onQuery: (session) =>
        onStart(() => {
          const copy: CopyBoth = session.copyBoth({ onStatus: (s) => onStatus(s, copy) });
          return copy;
        }),
    });
  });
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return { id, httpUrl: 'http://127.0.0.1:1', pgHost: '127.0.0.1', pgPort: (server.address() as AddressInfo).port };
}

function follow(safekeepers: readonly PeerAddress[], ingestFrom: () => Promise<void> = () => Promise.resolve()): WalReceiver {
  const timeline = {
    project: 'p',
    id: 't',
    log: silentLogger,
    lastRecordLsn: START,
    broken: undefined,
    newDecoder: () => ({ push: () => {}, wipe: () => {} }),
    ingestFrom,
  } as unknown as Timeline;
  return new WalReceiver(timeline, {
    safekeepers,
    lineage: 0,
    password: 'secret',
    durableLsn: () => START,
    room: () => undefined,
    statusIntervalMs: INTERVAL_MS,
  });
}

const hanging = {
  'before it streams': () => new Promise<void>(() => {}),
  'while it streams': async (copy: () => CopyBoth) => {
    const c = copy();
    await c.sendXLogData(START, START, Buffer.alloc(8));
    await c.whenEnded;
  },
};
for (const [when, onStart] of Object.entries(hanging)) {
  it(`a safekeeper that hangs ${when} is given up for the next one`, async () => {
    const reached = Promise.withResolvers<void>();
    const first = await safekeeper('sk1', onStart);
    const second = await safekeeper('sk2', async (copy) => {
      reached.resolve();
      await copy().whenEnded;
    });
    receiver = follow([first, second]);
    await reached.promise;
  });
}

it('a safekeeper that has nothing to send is asked, answers, and is kept', async () => {
  const asked = Promise.withResolvers<void>();
  let [starts, times] = [0, 0];
  const quiet = await safekeeper(
    'sk1',
    async (copy) => {
      starts++;
      await copy().whenEnded;
    },
    (status, copy) => {
      assert.equal(status.flush, START);
      if (!status.replyRequested) return;
      copy.sendKeepalive(START, false);
      if (++times === 10) asked.resolve();
    },
  );
  receiver = follow([quiet]);
  await asked.promise;
  assert.equal(starts, 1);
  assert.equal(receiver.connectedTo, 'sk1');
});

it('what takes long to ingest is no silence of the safekeeper', async () => {
  const [many, ingested] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  let [starts, statuses] = [0, 0];
  const busy = await safekeeper(
    'sk1',
    async (copy) => {
      starts++;
      const c = copy();
      await c.sendXLogData(START, START, Buffer.alloc(8));
      await c.whenEnded;
    },
    () => {
      if (++statuses === 20) many.resolve();
    },
  );
  receiver = follow([busy], () => ingested.promise);
  await many.promise;
  assert.equal(starts, 1);
  ingested.resolve();
});
