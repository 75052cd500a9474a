/** The templates of this pageserver, one per major version: `templates/<major>/`. They are not in the object store: the compute host makes them again. */
import { readdirSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import type { TemplateInfo } from '@lakebase/api';
import { LakebaseError, type Logger, SerialQueue } from '@lakebase/base';
import type { ProjectUid } from '@lakebase/ids';
import type { FrameCache } from '@lakebase/layers';
import type { ServiceKeys } from '@lakebase/service-kit';
import type { TemplateSubject } from './scrub-template.ts';
import type { TimelineFiles } from './storage.ts';
import { TEMPLATE_ID, importTemplate, instantiate, rewrapTemplate, templateInfo } from './template.ts';

export class Templates {
  readonly #root: string;
  readonly #actor: string;
  readonly #keys: ServiceKeys;
  readonly #frames: FrameCache;
  readonly #log: Logger;
  readonly #queues = new Map<number, SerialQueue>();

  constructor(dataDir: string, actor: string, keys: ServiceKeys, frames: FrameCache, log: Logger) {
    this.#root = join(dataDir, 'templates');
    this.#actor = actor;
    this.#keys = keys;
    this.#frames = frames;
    this.#log = log;
  }

  async put(major: number, body: Readable): Promise<TemplateInfo> {
    // The template has a key of its own, under the installation's root.
    await this.#keys.client?.createProject(TEMPLATE_ID as ProjectUid, {
      account: 'installation',
      configurationId: null,
      kms: { provider: 'LOCAL', key: 'root' },
      actor: this.#actor,
    });
    const files = this.#files(major);
    return this.#queue(major).run(async () => {
      await files.keys.ready();
      return importTemplate(body, major, files);
    });
  }

  async info(major: number): Promise<TemplateInfo> {
    const info = await templateInfo(this.#files(major));
    if (info === undefined) throw new LakebaseError('NOT_FOUND', `there is no template for Postgres ${major}`);
    return info;
  }

  /** Makes the directory of a new timeline. */
  instantiate(major: number, target: TimelineFiles, systemId: string, extra: Readonly<Record<string, unknown>>): Promise<void> {
    return this.#queue(major).run(() => instantiate(this.#files(major), target, systemId, extra));
  }

  /** See {@link TimelineStorage.rewrap}. */
  async rewrap(kekVersion: number): Promise<number> {
    let references = 0;
    for (const major of readdirSync(this.#root))
      references += await this.#queue(Number(major)).run(() => rewrapTemplate(this.#files(Number(major)), kekVersion, this.#log));
    return references;
  }

  /** What there is, for the scrubber. */
  subjects(): TemplateSubject[] {
    return readdirSync(this.#root)
      .map(Number)
      .filter((major) => Number.isInteger(major))
      .map((major) => {
        const files = this.#files(major);
        return {
          major,
          files,
          alone: (run) => this.#queue(major).run(run),
          remove: () => rm(files.directory, { recursive: true, force: true }),
        };
      });
  }

  #files(major: number): TimelineFiles {
    return {
      directory: join(this.#root, String(major)),
      keys: this.#keys.source.project(TEMPLATE_ID),
      cache: this.#frames,
      project: TEMPLATE_ID,
      timeline: TEMPLATE_ID,
    };
  }
  #queue(major: number): SerialQueue {
    let queue = this.#queues.get(major);
    if (queue === undefined) this.#queues.set(major, (queue = new SerialQueue()));
    return queue;
  }
}
