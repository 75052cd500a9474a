/** The Manager's part of generations, in memory, for tests: what services/manager/src/store/placements.ts does in its database. */
import {
  type AttachAnswer,
  type AttachRequest,
  type AttachedTimeline,
  type IndexPlace,
  NO_INDEX,
  type PeerAddress,
  type PublishedAnswer,
  type TimelineSize,
  type ValidateAnswer,
  type ValidateRequest,
  compareIndexPlaces,
} from '@lakebase/api';
import { LakebaseError } from '@lakebase/base';
import type { ProjectUid, TimelineId } from '@lakebase/ids';
import type { PlacementCalls } from './generations.ts';

export class FakePlacements {
  readonly projects = new Map<string, { owner: string; serving: string; generation: number; timelines: Map<string, IndexPlace> }>();
  safekeepers: readonly PeerAddress[] = [];
  /** As told last, by timeline. */
  readonly sizes = new Map<string, TimelineSize>();
  down = false;
  readonly calls = { attach: 0, validate: 0 };

  add(project: string, timelines: readonly string[], owner = 'ps'): void {
    this.projects.set(project, { owner, serving: owner, generation: 0, timelines: new Map(timelines.map((t) => [t, NO_INDEX])) });
  }

  /** As the pageserver `id` calls it. */
  of(id: string): PlacementCalls {
    return {
      attach: async (body) => this.#attach(id, body),
      validate: async (body) => this.#validate(id, body),
      published: async (project) => this.#published(project),
    };
  }

  #check(): void {
    if (this.down) throw new LakebaseError('UNAVAILABLE', 'the Manager is down');
  }

  #attach(id: string, body: AttachRequest): AttachAnswer {
    this.#check();
    this.calls.attach++;
    const answer = {
      attached: [] as AttachAnswer['attached'][number][],
      superseded: [] as ProjectUid[],
      moved: [] as ProjectUid[],
      unknown: [] as ProjectUid[],
    };
    for (const { project, seen } of body.projects) {
      const known = this.projects.get(project);
      if (known === undefined) {
        answer.unknown.push(project);
        continue;
      }
      known.generation = Math.max(known.generation, seen);
      if (known.owner !== id) {
        (known.serving === id ? answer.superseded : answer.moved).push(project);
        continue;
      }
      known.generation++;
      const timelines = [...known.timelines].map(
        ([timeline, published]): AttachedTimeline => ({ timeline: timeline as TimelineId, published, safekeepers: this.safekeepers }),
      );
      answer.attached.push({ project, generation: known.generation, timelines });
    }
    return answer;
  }

  #published(project: ProjectUid): PublishedAnswer {
    this.#check();
    const timelines = [...(this.projects.get(project)?.timelines ?? [])];
    return { timelines: timelines.map(([timeline, published]) => ({ timeline: timeline as TimelineId, published })) };
  }

  #validate(id: string, body: ValidateRequest): ValidateAnswer {
    this.#check();
    this.calls.validate++;
    const answer = { valid: [] as ProjectUid[], superseded: [] as ProjectUid[], moved: [] as ProjectUid[], unknown: [] as ProjectUid[] };
    for (const { project, generation, published, sizes = [] } of body.projects) {
      for (const size of sizes) this.sizes.set(size.timeline, size);
      const known = this.projects.get(project);
      if (known === undefined) {
        answer.unknown.push(project);
        continue;
      }
      for (const { timeline, version } of published) {
        const put = { generation, version };
        if (compareIndexPlaces(put, known.timelines.get(timeline) ?? NO_INDEX) > 0) known.timelines.set(timeline, put);
      }
      known.generation = Math.max(known.generation, generation);
      if (known.owner === id && known.generation === generation) answer.valid.push(project);
      else (known.serving === id ? answer.superseded : answer.moved).push(project);
    }
    return answer;
  }
}
