/** Keeps every safekeeper streaming from this compute: tells each where the compute is, and tells it again when it lost us (restart).
 *  Invariant: a FENCED answer means a newer term exists; this compute can never acknowledge another commit and must end. */
import type { PeerAddress, SafekeeperClient, SubscribeRequest, WalTimelineStatus } from '@lakebase/api';
import { type Logger, errorMessage, isCode, sleep } from '@lakebase/base';
import type { ProjectUid, Term, TimelineId } from '@lakebase/ids';
import type { Configuration } from '@lakebase/wal-quorum';

const POLL_MS = 1_000;

export interface SubscriptionsOptions {
  readonly members: readonly { readonly peer: PeerAddress; readonly client: SafekeeperClient }[];
  /** By which this compute counts. */
  readonly configuration: Configuration;
  readonly project: ProjectUid;
  readonly timeline: TimelineId;
  readonly term: Term;
  readonly host: string;
  readonly port: number;
  readonly user: string;
  readonly log: Logger;
  readonly onFenced: (term: number) => void;
  /** Called with every status a member answers. */
  readonly onStatus?: (member: string, status: WalTimelineStatus) => void;
  /** Called when a member does not answer. */
  readonly onSilent?: (member: string) => void;
}

export class Subscriptions {
  readonly #options: SubscriptionsOptions;
  readonly #abort = new AbortController();

  constructor(options: SubscriptionsOptions) {
    this.#options = options;
  }

  start(): void {
    for (const member of this.#options.members) void this.#keep(member.peer, member.client);
  }

  stop(): void {
    this.#abort.abort();
  }

  async #keep(peer: PeerAddress, client: SafekeeperClient): Promise<void> {
    const { project, timeline, term, log } = this.#options;
    const request: SubscribeRequest = {
      term,
      host: this.#options.host,
      port: this.#options.port,
      user: this.#options.user,
      standbyName: peer.id,
      configuration: this.#options.configuration,
    };
    let known = false;
    while (!this.#abort.signal.aborted) {
      try {
        const status = known ? await client.status(project, timeline) : await client.subscribe(project, timeline, request);
        this.#options.onStatus?.(peer.id, status);
        if (status.term > term) this.#options.onFenced(status.term);
        if (known && status.streaming?.term !== term) {
          known = false;
          continue;
        }
        known = true;
      } catch (error) {
        if (isCode(error, 'FENCED')) this.#options.onFenced(term + 1);
        else if (known || !isCode(error, 'UNAVAILABLE'))
          log.warn({ safekeeper: peer.id, err: errorMessage(error) }, 'safekeeper does not follow this compute now');
        known = false;
        // It may hold a newer configuration, which only its status tells.
        if (isCode(error, 'CONFLICT'))
          await client.status(project, timeline).then(
            (status) => this.#options.onStatus?.(peer.id, status),
            () => {},
          );
        else this.#options.onSilent?.(peer.id);
      }
      await sleep(POLL_MS, this.#abort.signal).catch(() => {});
    }
  }
}
