/** Who keeps this compute's WAL, while it runs: the safekeepers that stream from it, the rule by which Postgres waits for them, and what happens when a member is
 *  replaced (docs/protocols/membership.md).
 *
 *  Invariant: a flush report of a member counts only under the configuration that the member held when it gave it. So when the configuration changes:
 *  settings first, and a proof that the postmaster has them; then every stream of a member is ended, so that no walsender counts by the old rule any more; only
 *  then members are told the new generation, which lets them connect. */
import { type PeerAddress, SafekeeperClient, type WalConfiguration, type WalTimelineStatus } from '@lakebase/api';
import { LakebaseError, type Logger, SerialQueue, backoffDelay, errorMessage, sleep } from '@lakebase/base';
import type { ProjectUid, Term, TimelineId } from '@lakebase/ids';
import { type Configuration, type StandbyRule, chooseRule, configurationFromJson, votersOf } from '@lakebase/wal-quorum';
import { Client, type ClientConfig } from 'pg';
import { Subscriptions } from './subscriptions.ts';

export interface WalMember {
  readonly peer: PeerAddress;
  readonly client: SafekeeperClient;
}

/** The members of a configuration whose address is known. */
export function membersAt(addresses: readonly PeerAddress[], token: string): WalMember[] {
  return addresses.map((peer) => ({ peer, client: new SafekeeperClient({ baseUrl: peer.httpUrl, token }) }));
}

export interface WalMembersOptions {
  readonly configuration: Configuration;
  readonly members: readonly WalMember[];
  readonly project: ProjectUid;
  readonly timeline: TimelineId;
  readonly term: Term;
  readonly token: string;
  /** Our own connections to the server, which is also where members connect. */
  readonly connection: ClientConfig & { readonly host: string; readonly port: number; readonly user: string };
  readonly log: Logger;
  readonly onFenced: (term: number) => void;
  readonly onStatus: (member: string, status: WalTimelineStatus) => void;
  /** Writes the configuration file anew, by the rule and generation of now, and has it read. Must not wait for a connection: one may be waiting for
   *  a commit that only the new rule lets go. */
  readonly applySettings: () => void;
}

const SETTINGS_MS = 5_000;
const END_STREAM_MS = 2_000;

export class WalMembers {
  readonly #options: WalMembersOptions;
  readonly #changes = new SerialQueue();
  readonly #abort = new AbortController();
  readonly #streaming = new Set<string>();
  /** Application names of every stream of ours so far. */
  readonly #names = new Set<string>();
  #configuration: Configuration;
  #rule: StandbyRule;
  #subscriptions: Subscriptions | undefined;
  #asking = false;

  constructor(options: WalMembersOptions) {
    this.#options = options;
    this.#configuration = options.configuration;
    for (const id of votersOf(options.configuration)) this.#names.add(id);
    this.#rule = chooseRule(options.configuration, new Set(options.members.map((m) => m.peer.id)));
  }

  get generation(): number {
    return this.#configuration.generation;
  }
  get rule(): StandbyRule {
    return this.#rule;
  }
  get names(): readonly string[] {
    return [...this.#names];
  }

  start(): void {
    this.#subscribe(this.#options.members);
  }

  stop(): void {
    this.#abort.abort(new LakebaseError('CLOSED', 'the compute is stopping'));
    this.#subscriptions?.stop();
  }

  #subscribe(members: readonly WalMember[]): void {
    if (this.#abort.signal.aborted) return;
    const { project, timeline, term, connection, log, onFenced } = this.#options;
    const { host, port, user } = connection;
    const onStatus = (member: string, status: WalTimelineStatus): void => this.#onStatus(members, member, status);
    const onSilent = (member: string): void => this.#onSilent(member);
    const configuration = this.#configuration;
    const options = { members, configuration, project, timeline, term, host, port, user, log, onFenced, onStatus, onSilent };
    this.#subscriptions = new Subscriptions(options);
    this.#subscriptions.start();
  }

  #onStatus(members: readonly WalMember[], id: string, status: WalTimelineStatus): void {
    if (status.streaming?.term === this.#options.term) this.#streaming.add(id);
    else this.#streaming.delete(id);
    this.#options.onStatus(id, status);
    const member = members.find((m) => m.peer.id === id);
    if ((status.generation ?? 0) > this.generation && member !== undefined) this.#ask(member);
    else if (this.#configuration.newMembers !== null) this.#chooseAgain();
  }

  /** A member that hangs may have its stream yet; it is not one to wait for. */
  #onSilent(id: string): void {
    this.#streaming.delete(id);
    if (this.#configuration.newMembers !== null) this.#chooseAgain();
  }

  /** In a change there are two rules; which one can be satisfied depends on who streams. Each is safe: no stream has to end for it. */
  #chooseAgain(): void {
    const rule = chooseRule(this.#configuration, this.#streaming);
    if (rule.count === this.#rule.count) return;
    this.#options.log.info({ count: rule.count, names: rule.names }, 'commits wait by the other rule of the change');
    const before = this.#rule;
    this.#rule = rule;
    try {
      this.#options.applySettings();
    } catch (error) {
      this.#rule = before; // tried again with the next status
      this.#options.log.warn({ err: errorMessage(error) }, 'settings not reloaded');
    }
  }

  #ask(member: WalMember): void {
    if (this.#asking || this.#abort.signal.aborted) return;
    this.#asking = true;
    const { project, timeline, log } = this.#options;
    void this.#changes
      .run(async () => this.#follow(await member.client.configuration(project, timeline)))
      .catch((error: unknown) =>
        log.warn({ safekeeper: member.peer.id, err: errorMessage(error) }, 'cannot follow a change of members yet'),
      )
      .finally(() => {
        this.#asking = false;
      });
  }

  async #follow({ configuration: json, addresses }: WalConfiguration): Promise<void> {
    const configuration = configurationFromJson(json);
    if (configuration.generation <= this.generation) return;
    const { log, token } = this.#options;
    this.#subscriptions?.stop();
    this.#configuration = configuration;
    this.#rule = chooseRule(configuration, this.#streaming);
    for (const id of votersOf(configuration)) this.#names.add(id);
    const started = performance.now();
    for (let attempt = 0; !this.#abort.signal.aborted; attempt++) {
      try {
        this.#options.applySettings();
        await this.#settingsInForce();
        await this.#endStreams();
        break;
      } catch (error) {
        log.warn({ err: errorMessage(error), attempt }, 'the new configuration is not in force in Postgres yet; commits wait');
        await sleep(backoffDelay(attempt, { baseMs: 50, maxMs: 1_000 }), this.#abort.signal).catch(() => {});
      }
    }
    this.#streaming.clear();
    this.#subscribe(membersAt(addresses, token));
    log.info(
      { generation: this.generation, voters: votersOf(configuration), ms: Math.round(performance.now() - started) },
      'members changed',
    );
  }

  /** A connection made now is forked from the postmaster: what it shows, every later walsender has. */
  async #settingsInForce(): Promise<void> {
    const until = performance.now() + SETTINGS_MS;
    for (;;) {
      const value = await this.#query('SHOW lakebase.generation');
      if (value === String(this.generation)) return;
      if (performance.now() > until) throw new LakebaseError('TIMEOUT', `Postgres still counts by configuration ${value}`);
      await sleep(10);
    }
  }

  /** Streams of members that began before the settings were in force. */
  async #endStreams(): Promise<void> {
    const names = this.names.map((id) => `'${id}'`).join(',');
    const of = `FROM pg_stat_activity WHERE backend_type = 'walsender' AND application_name IN (${names})`;
    const left = await this.#query(`SELECT count(*) FILTER (WHERE NOT pg_terminate_backend(pid, ${END_STREAM_MS})) ${of}`);
    if (left !== '0') throw new LakebaseError('TIMEOUT', `${left} streams of members do not end`);
  }

  async #query(sql: string): Promise<string> {
    const client = new Client({ ...this.#options.connection, database: 'postgres' });
    client.on('error', () => {});
    await client.connect();
    try {
      const { rows } = await client.query<Record<string, unknown>>(sql);
      return String(Object.values(rows[0] ?? {})[0]);
    } finally {
      await client.end();
    }
  }
}
