/** A scrub of this pageserver: one timeline after the other; the templates; then what the store has of projects nobody knows. Invariant: a timeline that cannot be looked at
 *  (its key is locked, it is damaged beyond opening) is said to be skipped or found, and holds up no other. */
import { type ScrubFindingKind } from '@lakebase/api';
import { errorMessage, isCode } from '@lakebase/base';
import type { ProjectUid, TimelineId } from '@lakebase/ids';
import type { ObjectStore } from '@lakebase/object-store';
import type { OrphanMemory, ScrubJob } from '@lakebase/service-kit';
import { type TemplateSubject, scrubTemplate } from './scrub-template.ts';
import { type ScrubSubject, scrubTimeline } from './scrub-timeline.ts';

export interface ScrubHost {
  readonly store: ObjectStore | undefined;
  /** On this disk. */
  templates(): readonly TemplateSubject[];
  /** Every timeline this pageserver is responsible for, of these projects or of all it knows. */
  timelines(projects: readonly ProjectUid[] | null): Promise<readonly { readonly project: ProjectUid; readonly timeline: TimelineId }[]>;
  /** `release` when it is done with. Throws CORRUPT for one that cannot be opened, KEY_REVOKED for one that may not be. */
  open(project: ProjectUid, timeline: TimelineId): Promise<{ readonly subject: ScrubSubject; readonly release: () => void }>;
  /** One that could not be opened is made anew from the object store. False when it cannot be. */
  restore(project: ProjectUid, timeline: TimelineId): Promise<boolean>;
}

export async function scrubPageserver(host: ScrubHost, job: ScrubJob, orphans: OrphanMemory): Promise<void> {
  const wanted = job.project === null ? job.knownProjects : [job.project];
  const all = (await host.timelines(wanted as readonly ProjectUid[] | null)).filter(
    (t) => job.project === null || t.project === job.project,
  );
  let done = 0;
  job.timelines(0, all.length);
  for (const { project, timeline } of all) {
    job.signal.throwIfAborted();
    try {
      const { subject, release } = await host.open(project, timeline);
      try {
        await scrubTimeline(subject, job, orphans);
      } finally {
        release();
      }
    } catch (error) {
      job.signal.throwIfAborted();
      // Deleted, or locked, while we were at it or before.
      if (isCode(error, 'NOT_FOUND') || isCode(error, 'CLOSED') || isCode(error, 'KEY_REVOKED')) {
        if (!isCode(error, 'NOT_FOUND')) job.skipped(`${project}/${timeline}: ${errorMessage(error)}`);
      } else {
        const kind: ScrubFindingKind = isCode(error, 'CORRUPT') || isCode(error, 'UNSUPPORTED') ? 'damaged' : 'unreadable';
        const restored = job.repair && kind === 'damaged' && (await host.restore(project, timeline).catch(() => false));
        job.found({
          kind,
          name: timeline,
          where: 'disk',
          project,
          timeline,
          detail: errorMessage(error),
          outcome: restored ? 'repaired' : 'left',
        });
      }
    }
    job.timelines(++done, all.length);
  }
  orphans.save();
  if (job.project === null) await scrubTemplates(host, job);
  if (host.store !== undefined && job.knownProjects !== null && job.project === null)
    await findUnknownProjects(host.store, job, job.knownProjects);
}

async function scrubTemplates(host: ScrubHost, job: ScrubJob): Promise<void> {
  for (const template of host.templates()) {
    job.signal.throwIfAborted();
    try {
      await scrubTemplate(template, job);
    } catch (error) {
      job.signal.throwIfAborted();
      job.skipped(`template ${template.major}: ${errorMessage(error)}`);
    }
  }
}

const PROJECT_OF = /^projects\/([^/]+)\//;

/** One short list for each project there is: the next name behind everything of the last one. Never deletes: an old metadata database must not cost data. */
async function findUnknownProjects(store: ObjectStore, job: ScrubJob, known: readonly string[]): Promise<void> {
  const knows = new Set(known);
  for (let after = 'projects/'; ; ) {
    job.signal.throwIfAborted();
    const { objects, next } = await store.list('projects/', { after, limit: 1, signal: job.signal });
    const key = objects[0]?.key;
    if (key === undefined && next === undefined) return;
    const project = PROJECT_OF.exec(key ?? '')?.[1];
    if (project === undefined) {
      after = key ?? (next as string);
      continue;
    }
    if (!knows.has(project))
      job.found({
        kind: 'unknown',
        name: `projects/${project}/`,
        where: 'store',
        project,
        timeline: '',
        detail: 'the Manager knows no such project; when it is sure that nobody does, delete everything below by hand',
        outcome: 'left',
      });
    // '~' sorts behind every character of a name.
    after = `projects/${project}/~`;
  }
}
