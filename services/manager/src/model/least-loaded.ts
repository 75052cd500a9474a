/** Which node the next project goes to: the one that is the least full by bytes. Pure: the same figures choose the same node.
 *  Invariant: what was placed a moment ago counts before anybody can have measured it, so a burst of new projects spreads. */
import { LakebaseError } from '@lakebase/base';

export interface NodeDisk {
  readonly id: string;
  /** Of its disk; undefined: not known. */
  readonly capacityBytes: number | undefined;
}
export interface NodeLoad {
  readonly id: string;
  readonly projects: number;
  /** Of its projects, each with {@link PROJECT_BYTES_MIN} at least. */
  readonly bytes: number;
}

/** A project counts as this much until it has more. As much as a branch may hold in memory before it has a layer to report, and enough that among small
 *  projects it is their number that decides. */
export const PROJECT_BYTES_MIN = 64 << 20;

/** Of `nodes`, the preferred first, the one that is the least full once it has the project; of equals the one with fewer projects. Bytes are weighed by
 *  capacity when that of every node is known, else nodes count as equally large. */
export function leastLoaded(nodes: readonly NodeDisk[], loads: readonly NodeLoad[]): string {
  const weigh = nodes.every((n) => n.capacityBytes !== undefined);
  const known = new Map(loads.map((l) => [l.id, l]));
  const ranked = nodes.map(({ id, capacityBytes = 1 }) => {
    const { bytes = 0, projects = 0 } = known.get(id) ?? {};
    return { id, projects, fill: (bytes + PROJECT_BYTES_MIN) / (weigh ? capacityBytes : 1) };
  });
  // A stable sort: of what is equal in both, the preferred one stays first.
  const [best] = ranked.sort((a, b) => a.fill - b.fill || a.projects - b.projects);
  if (best === undefined) throw new LakebaseError('INTERNAL', 'there is no node to choose from');
  return best.id;
}
