/** Collects measurements of one run, interleaved over arms and rounds, and prints them as a table of medians and ratios. */

export interface Sample {
  readonly id: string;
  readonly unit: string;
  readonly arm: string;
  readonly value: number /** Larger is better? */;
  readonly higher: boolean;
}

export const median = (values: readonly number[]): number => percentile(values, 0.5);

export function percentile(values: readonly number[], p: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil(p * sorted.length) - 1))] ?? Number.NaN;
}

export class Report {
  readonly samples: Sample[] = [];
  readonly notes: string[] = [];

  add(sample: Sample): void {
    this.samples.push(sample);
    process.stdout.write(`  ${sample.id} ${sample.arm}: ${format(sample.value)} ${sample.unit}\n`);
  }

  note(text: string): void {
    this.notes.push(text);
    process.stdout.write(`  ${text}\n`);
  }

  table(): string {
    const rows = [
      '| measurement | unit | lakebase | stock (fsync) | stock + 2 sync standbys | ours / stock | ours / sync |',
      '|---|---|---|---|---|---|---|',
    ];
    for (const id of new Set(this.samples.map((s) => s.id))) {
      const mine = this.samples.filter((s) => s.id === id);
      const first = mine[0];
      if (first === undefined) continue;
      const cell = (arm: string): string => {
        const values = mine.filter((s) => s.arm === arm).map((s) => s.value);
        if (values.length === 0) return '';
        const range = values.length > 1 ? ` (${format(Math.min(...values))}–${format(Math.max(...values))})` : '';
        return `${format(median(values))}${range}`;
      };
      rows.push(
        `| ${id} | ${first.unit} | ${cell('lakebase')} | ${cell('stock')} | ${cell('sync')} | ${this.#ratio(mine, 'stock', first.higher)} | ${this.#ratio(mine, 'sync', first.higher)} |`,
      );
    }
    return [...rows, '', ...this.notes.map((n) => `- ${n}`)].join('\n');
  }

  /** Above 1 is better for us, whichever way the unit runs. */
  #ratio(samples: readonly Sample[], arm: string, higher: boolean): string {
    const ours = samples.filter((s) => s.arm === 'lakebase').map((s) => s.value);
    const theirs = samples.filter((s) => s.arm === arm).map((s) => s.value);
    if (ours.length === 0 || theirs.length === 0) return '';
    const ratio = median(ours) / median(theirs);
    return (higher ? ratio : 1 / ratio).toFixed(2);
  }
}

export const format = (value: number): string =>
  value >= 1_000 ? Math.round(value).toString() : value >= 10 ? value.toFixed(1) : value.toFixed(2);
