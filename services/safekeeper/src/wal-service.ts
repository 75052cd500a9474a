/** WAL over the Postgres replication protocol, for pageservers, replicas, peers and any standard tool (packages/api, safekeeper.ts).
 *  The timeline is named by `options='-c lakebase.project=… -c lakebase.timeline=…'`, or by a user or database `<project>.<timeline>`.
 *  Password: the service token, or the timeline's own. */
import { type Server, type Socket, createServer } from 'node:net';
import { internalToken, timelineScope } from '@lakebase/api';
import { LakebaseError, type Logger } from '@lakebase/base';
import {
  type Lsn,
  type ProjectUid,
  type Term,
  type TimelineId,
  formatLsn,
  parseLsn,
  parseProjectUid,
  parseTerm,
  parseTimelineId,
} from '@lakebase/ids';
import {
  type AuthDecision,
  OID_INT4,
  OID_INT8,
  PgError,
  PgServerSession,
  type StandbyStatus,
  type StartupMessage,
  fatal,
  settingsFromOptions,
  textColumn,
} from '@lakebase/pg-wire';
import { majorOf } from './void-wal.ts';
import type { WalTimeline } from './wal-timeline.ts';
import { sendWal } from './walsender.ts';

/** application_name of pageservers: their flush reports say what is durable in pages and may be trimmed here. */
export const PAGESERVER_APPLICATION = 'pageserver';
const CONNECTIONS_MAX = 2_000;
const LINGER_MS = 250;
const COMMAND_BYTES_MAX = 64 * 1024;

export interface WalServiceOptions {
  readonly secret: string;
  readonly log: Logger;
  readonly find: (project: ProjectUid, timeline: TimelineId) => WalTimeline;
  readonly onPageserverStatus: (timeline: WalTimeline, status: StandbyStatus) => void;
}

interface Target {
  readonly project: ProjectUid;
  readonly timeline: TimelineId;
  readonly settings: ReadonlyMap<string, string>;
}

export class WalService {
  readonly #options: WalServiceOptions;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  /** Projects of the sessions that have named one. */
  readonly #projects = new Map<PgServerSession, { readonly project: string; readonly socket: Socket }>();

  constructor(options: WalServiceOptions) {
    this.#options = options;
    this.#server = createServer({ noDelay: true, keepAlive: true, keepAliveInitialDelay: 30_000 }, (socket) => this.#serve(socket));
    this.#server.maxConnections = CONNECTIONS_MAX;
  }

  get connections(): number {
    return this.#sockets.size;
  }

  listen(host: string, port: number): Promise<number> {
    return new Promise((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(port, host, () => {
        const address = this.#server.address();
        resolve(typeof address === 'object' && address !== null ? address.port : port);
      });
    });
  }

  /** Ends the streams of a project; what still waits to be sent is thrown away. */
  end(project: string): void {
    for (const { project: own, socket } of this.#projects.values()) {
      if (own !== project) continue;
      // Whoever has taken everything is told why by its stream.
      if (socket.writableLength > 0) socket.destroy();
      else setTimeout(() => socket.destroy(), LINGER_MS).unref();
    }
  }

  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }

  #serve(socket: Socket): void {
    this.#sockets.add(socket);
    socket.once('close', () => this.#sockets.delete(socket));
    // Slots are temporary: they live as long as the session and hold nothing back.
    const slots = new Set<string>();
    void PgServerSession.serve(socket, {
      authenticate: (startup) => this.#authenticate(startup),
      onQuery: (session, sql) => {
        if (!this.#projects.has(session)) {
          const project = targetOf(session.startup)?.project;
          if (project !== undefined) this.#projects.set(session, { project, socket });
          socket.once('close', () => this.#projects.delete(session));
        }
        return this.#command(session, sql, slots);
      },
      queryBytesMax: COMMAND_BYTES_MAX,
      log: this.#options.log,
    });
  }

  #authenticate(startup: StartupMessage): AuthDecision {
    const replication = startup.parameters.get('replication') ?? '';
    if (!['true', 'on', 'yes', '1', 'database'].includes(replication.toLowerCase()))
      throw fatal('0A000', 'this server speaks the replication protocol only; connect with replication=true');
    const { secret } = this.#options;
    const target = targetOf(startup);
    const passwords = [internalToken(secret, 'service')];
    if (target !== undefined) passwords.push(internalToken(secret, timelineScope(target.project, target.timeline)));
    return { passwords };
  }

  async #command(session: PgServerSession, sql: string, slots: Set<string>): Promise<void> {
    const target = targetOf(session.startup);
    if (target === undefined)
      throw fatal('08004', "name a timeline: options='-c lakebase.project=… -c lakebase.timeline=…', or user <project>.<timeline>");
    const timeline = this.#find(target);
    checkLineage(session, target, timeline);
    const peerTerm = peerTermOf(target, session);
    const text = sql.trim().replace(/;\s*$/, '');
    let m: RegExpExecArray | null;
    if (/^IDENTIFY_SYSTEM$/i.test(text)) return identifySystem(session, timeline, peerTerm);
    if ((m = /^SHOW\s+"?([\w.]+)"?$/i.exec(text)) !== null) return show(session, timeline, (m[1] as string).toLowerCase());
    if (
      (m =
        /^START_REPLICATION\s+(?:SLOT\s+"?(\w{1,63})"?\s+)?(?:PHYSICAL\s+)?([0-9A-F]{1,8}\/[0-9A-F]{1,8})(?:\s+TIMELINE\s+(\d{1,10}))?$/i.exec(
          text,
        )) !== null
    ) {
      if (m[1] !== undefined && !slots.has(m[1])) throw noSuchSlot(m[1]);
      if (m[3] !== undefined && m[3] !== '1')
        throw new PgError({ severity: 'ERROR', sqlstate: '58P01', message: `requested timeline ${m[3]} is not in this server's history` });
      const isPageserver = session.startup.parameters.get('application_name') === PAGESERVER_APPLICATION && session.matched === 0;
      return sendWal(session, timeline, {
        from: parseLsn(m[2] as string),
        ...(peerTerm === undefined ? {} : { peerTerm }),
        ...(isPageserver ? { onStatus: (status) => this.#options.onPageserverStatus(timeline, status) } : {}),
      });
    }
    if ((m = /^TIMELINE_HISTORY\s+(\d{1,10})$/i.exec(text)) !== null)
      throw new PgError({
        severity: 'ERROR',
        sqlstate: '58P01',
        message: `there is no history file of timeline ${m[1]}: this server has timeline 1 only`,
      });
    if ((m = /^CREATE_REPLICATION_SLOT\s+"?(\w{1,63})"?\s+(TEMPORARY\s+)?PHYSICAL\b[^;]*$/i.exec(text)) !== null) {
      if (m[2] === undefined)
        throw new LakebaseError('UNSUPPORTED', 'only temporary slots exist here; WAL is kept by retention, not by slots');
      slots.add(m[1] as string);
      return session.sendRows(['slot_name', 'consistent_point', 'snapshot_name', 'output_plugin'].map(textColumn), [
        [m[1] as string, '0/0', null, null],
      ]);
    }
    if ((m = /^READ_REPLICATION_SLOT\s+"?(\w{1,63})"?$/i.exec(text)) !== null) {
      const known = slots.has(m[1] as string);
      const columns = [textColumn('slot_type'), textColumn('restart_lsn'), { name: 'restart_tli', typeOid: OID_INT8, typeSize: 8 }];
      return session.sendRows(columns, [[known ? 'physical' : null, null, null]]);
    }
    if ((m = /^DROP_REPLICATION_SLOT\s+"?(\w{1,63})"?(?:\s+WAIT)?$/i.exec(text)) !== null) {
      if (!slots.delete(m[1] as string)) throw noSuchSlot(m[1] as string);
      return session.complete('DROP_REPLICATION_SLOT');
    }
    throw new PgError({
      severity: 'ERROR',
      sqlstate: '42601',
      message: `not a replication command known here: ${JSON.stringify(text.slice(0, 60))}`,
    });
  }

  #find(target: Target): WalTimeline {
    try {
      return this.#options.find(target.project, target.timeline);
    } catch (error) {
      if (error instanceof LakebaseError && error.code === 'NOT_FOUND') throw fatal('3D000', error.message);
      throw error;
    }
  }
}

const noSuchSlot = (name: string): PgError =>
  new PgError({ severity: 'ERROR', sqlstate: '42704', message: `replication slot "${name}" does not exist` });

function targetOf(startup: StartupMessage): Target | undefined {
  const settings = settingsFromOptions(startup.parameters.get('options'));
  let project: string | undefined = settings.get('lakebase.project');
  let timeline: string | undefined = settings.get('lakebase.timeline');
  if (project === undefined && timeline === undefined) {
    const named = /^([0-9a-f]{32})\.([0-9a-f]{32})$/;
    const match = named.exec(startup.parameters.get('database') ?? '') ?? named.exec(startup.parameters.get('user') ?? '');
    project = match?.[1];
    timeline = match?.[2];
  }
  if (project === undefined || timeline === undefined) return undefined;
  return { project: parseProjectUid(project), timeline: parseTimelineId(timeline), settings };
}

/** Readers whose state depends on it name the lineage they read; WAL of another one would contradict what they have. */
function checkLineage(session: PgServerSession, { settings }: Target, timeline: WalTimeline): void {
  const named = settings.get('lakebase.lineage');
  const isPageserver = session.startup.parameters.get('application_name') === PAGESERVER_APPLICATION;
  if (named === undefined && !isPageserver) return;
  const wanted = Number(named ?? 0);
  if (wanted !== timeline.lineage)
    throw fatal('55000', `this member holds WAL of lineage ${timeline.lineage} of the timeline, not of ${wanted}`);
}

/** Uncommitted WAL is for other members only, and only within one term. */
function peerTermOf(target: Target, session: PgServerSession): Term | undefined {
  const peer = target.settings.get('lakebase.peer');
  if (peer === undefined || peer === '0') return undefined;
  if (session.matched !== 0) throw fatal('42501', 'lakebase.peer needs the service token');
  return parseTerm(Number(target.settings.get('lakebase.term') ?? Number.NaN));
}

function identifySystem(session: PgServerSession, timeline: WalTimeline, peerTerm: Term | undefined): void {
  const end: Lsn = peerTerm === undefined ? timeline.readableLsn : timeline.flushLsn;
  session.sendRows(
    [textColumn('systemid'), { name: 'timeline', typeOid: OID_INT4, typeSize: 4 }, textColumn('xlogpos'), textColumn('dbname')],
    [[timeline.control.systemId.toString(), '1', formatLsn(end), null]],
    'IDENTIFY_SYSTEM',
  );
}

function show(session: PgServerSession, timeline: WalTimeline, name: string): void {
  const major = majorOf(timeline.control.pgVersion);
  const firstRecord = (): string => {
    const first = timeline.firstRecord();
    return `${formatLsn(timeline.firstLsn)} ${formatLsn(first.lsn)} ${formatLsn(first.lastRecordLsn)}`;
  };
  const values: Record<string, () => string> = {
    wal_segment_size: () => '16MB',
    data_directory_mode: () => '0700',
    server_version: () => `${major}.0`,
    server_version_num: () => `${major}0000`,
    integer_datetimes: () => 'on',
    'lakebase.term': () => String(timeline.term),
    'lakebase.first_record': firstRecord,
  };
  const value = Object.hasOwn(values, name) ? values[name] : undefined;
  if (value === undefined)
    throw new PgError({ severity: 'ERROR', sqlstate: '42704', message: `unrecognized configuration parameter "${name}"` });
  session.sendRows([textColumn(name)], [[value()]], 'SHOW');
}
