/** Scrubs a template, which is on this disk only: its index and every layer the index names. Invariant: one that is not as it was written is taken away
 *  rather than kept, as no timeline may be made of it; the next project of its major has it made anew (docs/operating/scrub.md). */
import { join } from 'node:path';
import type { ScrubFindingKind } from '@lakebase/api';
import { errorMessage, isCode } from '@lakebase/base';
import type { ProjectUid, TimelineId } from '@lakebase/ids';
import { fileSource } from '@lakebase/inspect';
import { keyFromText, readIndex } from '@lakebase/layers';
import type { ScrubJob } from '@lakebase/service-kit';
import { checkNamed, namedOf } from './scrub-timeline.ts';
import type { TimelineFiles } from './storage.ts';
import { INDEX_FILE } from './storage-directory.ts';

export interface TemplateSubject {
  readonly major: number;
  readonly files: TimelineFiles;
  /** Runs while nobody replaces or copies it. */
  readonly alone: <T>(run: () => Promise<T>) => Promise<T>;
  /** For good. */
  readonly remove: () => Promise<void>;
}

export async function scrubTemplate({ major, files, alone, remove }: TemplateSubject, job: ScrubJob): Promise<void> {
  if ((await problemOf(files, job)) === undefined) return;
  // One that is being replaced looks damaged: once more, while nobody does.
  await alone(async () => {
    const problem = await problemOf(files, job);
    if (problem === undefined) return;
    const { kind } = problem;
    let { detail } = problem;
    let outcome: 'left' | 'repaired' = 'left';
    if (job.repair && kind !== 'unreadable')
      try {
        await remove();
        outcome = 'repaired';
        detail += '; taken away, the next project has it made anew';
      } catch (error) {
        detail += `; cannot be taken away: ${errorMessage(error)}`;
      }
    job.found({
      kind,
      name: `template ${major}`,
      where: 'disk',
      project: files.project as ProjectUid,
      timeline: files.timeline as TimelineId,
      detail,
      outcome,
    });
  });
}

/** Undefined: nothing is wrong, or there is no template. */
async function problemOf(files: TimelineFiles, job: ScrubJob): Promise<{ kind: ScrubFindingKind; detail: string } | undefined> {
  const { directory, project, timeline, keys } = files;
  try {
    await keys.ready();
    const found = await readIndex(join(directory, INDEX_FILE), project, timeline, keys);
    if (found === undefined) return undefined;
    job.object();
    const { layers } = found.index;
    await keys.load(layers.map((d) => keyFromText(d.key)));
    for (const { name } of layers) {
      const named = namedOf(found.index, name);
      if (named === undefined) continue;
      const source = await fileSource(join(directory, name));
      try {
        job.object();
        await checkNamed(source, named, { project: project as ProjectUid, timeline: timeline as TimelineId, keys }, job);
      } finally {
        await source.close();
      }
    }
    return undefined;
  } catch (error) {
    job.signal.throwIfAborted();
    if (isCode(error, 'KEY_REVOKED') || isCode(error, 'CLOSED')) throw error;
    const detail = errorMessage(error);
    if (isCode(error, 'NOT_FOUND')) return { kind: 'missing', detail };
    return { kind: isCode(error, 'CORRUPT') || isCode(error, 'UNSUPPORTED') ? 'damaged' : 'unreadable', detail };
  }
}
