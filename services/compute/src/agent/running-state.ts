/** Keeps in storage, while Postgres runs, what a start after a crash wants and WAL does not carry: replication slots, statistics.
 *  Looked at every second; sent when something changed, one at a time. Nothing is sent after {@link stop} has returned, so that it cannot replace the
 *  state of the suspend that follows. */
import { type BundleFile, encodeSuspendState } from '@lakebase/api';
import { type Logger, errorMessage } from '@lakebase/base';
import type { Lsn } from '@lakebase/ids';
import type { ScratchCipher } from '../scratch-cipher.ts';
import { slotFiles, slotSignature } from './replication-slots.ts';

const LOOK_MS = 1_000;
/** A running compute's state is of no LSN of its own. */
const RUNNING = 0 as Lsn;

export class RunningState {
  readonly #pgdata: string;
  #constant: readonly BundleFile[];
  readonly #send: (body: Buffer) => Promise<void>;
  readonly #log: Logger;
  readonly #cipher: ScratchCipher | null;
  #timer: NodeJS.Timeout | undefined;
  #sending: Promise<void> | undefined;
  /** What storage has; at first what the start laid down came from there. */
  #kept: string;
  #stopped = false;
  #replaced = 0;

  /** `constant`: files that the start laid down and that are kept on as they were: Postgres removes its statistics file when it has read it. */
  constructor(
    pgdata: string,
    constant: readonly BundleFile[],
    send: (body: Buffer) => Promise<void>,
    log: Logger,
    cipher: ScratchCipher | null,
  ) {
    this.#constant = constant;
    this.#pgdata = pgdata;
    this.#send = send;
    this.#log = log;
    this.#cipher = cipher;
    this.#kept = this.#signature();
  }

  start(): void {
    this.#timer = setInterval(() => this.look(), LOOK_MS);
  }

  /** One of the constant files has another content now. */
  replace(file: BundleFile): void {
    this.#constant = [...this.#constant.filter((other) => other.path !== file.path), file];
    this.#replaced++; // sent with the next look
  }

  look(): void {
    if (this.#stopped || this.#sending !== undefined) return;
    const now = this.#signature();
    if (this.#kept === now) return;
    this.#sending = this.#keep(now).finally(() => (this.#sending = undefined));
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    clearInterval(this.#timer);
    await this.#sending;
  }

  #signature(): string {
    return `${this.#replaced} ${slotSignature(this.#pgdata)}`;
  }

  async #keep(signature: string): Promise<void> {
    try {
      await this.#send(
        encodeSuspendState({ lsn: RUNNING, files: [...this.#constant, ...slotFiles(this.#pgdata, this.#cipher)], pages: [] }),
      );
      this.#kept = signature;
      this.#log.info({}, 'replication slots and statistics kept');
    } catch (error) {
      this.#log.warn({ err: errorMessage(error) }, 'replication slots not kept; trying again');
    }
  }
}
