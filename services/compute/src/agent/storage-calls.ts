/** What a compute tells and asks its timeline's pageserver by HTTP, at whichever one the project is now: the state it leaves behind, the boot set, how
 *  far storage is. Invariant: when {@link StorageCalls.keepSuspendState} has resolved, the state is durable. */
import { join } from 'node:path';
import { type BundleFile, PageserverClient, encodeBootSet, encodeSuspendState } from '@lakebase/api';
import { LakebaseError, type Logger, errorMessage } from '@lakebase/base';
import { type Lsn, type ProjectUid, type TimelineId, formatLsn, parseLsn } from '@lakebase/ids';
import { CONTROL_FILE_PATH, DB_SHUTDOWNED, SHUTDOWN_CHECKPOINT_BYTES, endOfRecord, readControlFile } from '@lakebase/pg-format';
import { ResidentMap } from '../resident-map.ts';
import { type ScratchCipher, readScratchFile } from '../scratch-cipher.ts';
import type { BootSet } from './boot-set.ts';
import { collectSuspendState } from './suspend-state.ts';
import { putBinary } from './upload.ts';

export interface StorageCallsOptions {
  /** Asked for every call: a project may be moved. */
  readonly baseUrl: () => string;
  readonly token: string;
  readonly project: ProjectUid;
  readonly timeline: TimelineId;
  readonly log: Logger;
}

export class StorageCalls {
  readonly #o: StorageCallsOptions;
  #client: { readonly baseUrl: string; readonly client: PageserverClient } | undefined;

  constructor(options: StorageCallsOptions) {
    this.#o = options;
  }

  putSuspendState(body: Buffer): Promise<void> {
    return putBinary(this.#url('suspend-state'), this.#o.token, body);
  }

  async ingestedLsn(): Promise<Lsn> {
    const { project, timeline, token } = this.#o;
    const baseUrl = this.#o.baseUrl();
    if (this.#client?.baseUrl !== baseUrl) this.#client = { baseUrl, client: new PageserverClient({ baseUrl, token }) };
    return parseLsn((await this.#client.client.status(project, timeline)).lastRecordLsn);
  }

  async keepBootSet(set: BootSet | undefined): Promise<void> {
    if (set?.grown !== true) return;
    try {
      await putBinary(this.#url('boot-set'), this.#o.token, encodeBootSet(set.blocks()));
    } catch (error) {
      this.#o.log.debug({ err: errorMessage(error) }, 'boot set not kept');
    }
  }

  /** After a clean shutdown of Postgres. */
  async keepSuspendState(from: {
    readonly pgdata: string;
    readonly mapPath: string;
    readonly cipher: ScratchCipher | null;
    /** More files, which Postgres does not have. */
    readonly files: readonly BundleFile[];
  }): Promise<void> {
    const { pgdata, mapPath, cipher } = from;
    const control = readControlFile(readScratchFile(cipher, join(pgdata, CONTROL_FILE_PATH)));
    if (control.state !== DB_SHUTDOWNED) throw new LakebaseError('CONFLICT', 'Postgres did not shut down cleanly');
    const end = endOfRecord(control.checkPoint, SHUTDOWN_CHECKPOINT_BYTES);
    const state = collectSuspendState(pgdata, ResidentMap.open(mapPath), end, cipher);
    const files = [...state.files, ...from.files];
    await this.putSuspendState(encodeSuspendState({ ...state, files }));
    this.#o.log.info({ lsn: formatLsn(end), files: files.length, pages: state.pages.length }, 'suspend state kept');
  }

  #url(verb: string): string {
    return `${this.#o.baseUrl()}/v1/timelines/${this.#o.project}/${this.#o.timeline}/${verb}`;
  }
}
