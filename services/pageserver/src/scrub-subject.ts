/** A timeline's storage as the scrubber sees it. */
import { open, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { LakebaseError } from '@lakebase/base';
import type { ProjectUid, TimelineId } from '@lakebase/ids';
import { TEMP_SUFFIX, syncDirectory } from '@lakebase/layers';
import { type ObjectStore, timelineObject } from '@lakebase/object-store';
import type { Generations } from './generations.ts';
import type { ScrubHost } from './scrub.ts';
import type { ScrubSubject } from './scrub-timeline.ts';
import type { TimelineStorage } from './storage.ts';
import type { TimelineStore } from './store.ts';
import type { Uploader } from './uploader.ts';

/** All timelines of a pageserver as the scrubber sees them. */
export function scrubHostOf(store: TimelineStore): ScrubHost {
  const { remote } = store;
  return {
    store: remote?.store,
    templates: () => store.templates.subjects(),
    timelines: (projects) => store.timelinesOf(projects),
    open: async (project, timeline) => {
      const held = await store.hold(project, timeline);
      const uploader = [...store.attached()].find((t) => t.timeline === held.timeline)?.uploader;
      const far = remote === undefined || uploader === undefined ? undefined : { ...remote, uploader };
      return { subject: subjectOf(held.timeline.storage, far), release: held.release };
    },
    restore: (project, timeline) => store.moves.restoreDamaged(project, timeline),
  };
}

/** With the object store; without one everything is on this disk only. */
export interface ScrubRemote {
  readonly store: ObjectStore;
  readonly generations: Generations;
  readonly uploader: Uploader;
}

export function subjectOf(storage: TimelineStorage, remote: ScrubRemote | undefined): ScrubSubject {
  const { files } = storage;
  const project = files.project as ProjectUid;
  const timeline = files.timeline as TimelineId;
  const mine = (): number | undefined =>
    remote?.generations.standing(project) === 'valid' ? remote.generations.attached(project)?.generation : undefined;
  return {
    project,
    timeline,
    keys: files.keys,
    directory: files.directory,
    store: remote?.store,
    index: () => storage.index,
    generation: mine,
    confirm: async () => {
      if (remote === undefined || mine() === undefined)
        throw new LakebaseError('FENCED', 'this pageserver has no generation that is the newest');
      await remote.generations.validate(project);
    },
    republish: async () => {
      await storage.update({});
      await remote?.uploader.flush();
    },
    refetch: async (name) => {
      const handle = storage.set.layers.find((l) => l.descriptor.name === name);
      const cached = handle?.cached;
      if (cached === undefined) {
        if (remote === undefined) throw new LakebaseError('NOT_FOUND', 'without an object store there is no other copy');
        await fetchFile(remote.store, timelineObject(project, timeline, name), join(files.directory, name));
        handle?.close();
        return;
      }
      cached.pin();
      try {
        await cached.evict();
        await cached.makeWhole();
      } finally {
        cached.unpin();
      }
    },
  };
}

async function fetchFile(store: ObjectStore, key: string, path: string): Promise<void> {
  const temporary = `${path}.scrub${TEMP_SUFFIX}`;
  try {
    const { body } = await store.stream(key);
    const file = await open(temporary, 'w', 0o600);
    try {
      for await (const piece of body as AsyncIterable<Buffer>) await file.writeFile(piece);
      await file.datasync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
    await syncDirectory(join(path, '..'));
  } finally {
    await rm(temporary, { force: true });
  }
}
