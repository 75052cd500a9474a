/** Storage's own figures: WAL ingest, GetPage, redo against Postgres's recovery of the same WAL. */
import type { Plan } from './cases.ts';
import type { Report } from './report.ts';

export async function storageCases(_plan: Plan, report: Report): Promise<void> {
  report.note('storage cases are not wired yet');
}
