/** Postgres settings that storage or the agent depends on. One list for both places that keep users from setting them: the Manager, which refuses
 *  them where the user sees why, and the agent, which leaves them out of postgresql.conf whoever asks. */
export const AGENT_OWNED_SETTINGS: ReadonlySet<string> = new Set([
  'fsync',
  'full_page_writes',
  'debug_io_direct',
  'data_checksums',
  'synchronous_standby_names',
  'synchronous_commit',
  'listen_addresses',
  'port',
  'hba_file',
  'ident_file',
  'config_file',
  'data_directory',
  'external_pid_file',
  'restart_after_crash',
  'max_wal_senders',
  'wal_keep_size',
  'max_slot_wal_keep_size',
  'wal_sender_timeout',
  'wal_sync_method',
  'wal_log_hints',
  'wal_init_zero',
  'wal_segment_size',
  'hot_standby',
  'primary_conninfo',
  'primary_slot_name',
  'restore_command',
  'session_preload_libraries',
  'local_preload_libraries',
  'dynamic_library_path',
  'log_destination',
  'logging_collector',
  'log_directory',
  'log_filename',
  'allow_alter_system',
  'allow_in_place_tablespaces',
  'temp_tablespaces',
  'password_encryption',
  'io_method',
  'dynamic_shared_memory_type',
  'unix_socket_directories',
  'unix_socket_permissions',
  'archive_mode',
  'lakebase.term',
  'lakebase.generation',
  'ssl',
  'unix_socket_group',
  'recovery_target',
]);

/** Settings a user may give some values of: why this one is refused, or undefined. Asked by the Manager and, again, by the agent. */
export function refusedValue(name: string, value: string): string | undefined {
  if (name === 'wal_level' && value !== 'replica' && value !== 'logical') return 'wal_level can be replica or logical';
  // A path could name any file of the machine; Postgres looks a plain name up in its own library directory only.
  if (name === 'shared_preload_libraries' && preloadLibraries(value) === undefined)
    return 'shared_preload_libraries is a list of plain library names, like pg_stat_statements, auto_explain';
  return undefined;
}

/** Names in a value of shared_preload_libraries; undefined when one is not a plain name. */
export function preloadLibraries(value: string): string[] | undefined {
  const names = value.split(',').flatMap((part) => {
    const name = part.trim().replace(/^"(.*)"$/, '$1');
    return name === '' ? [] : [name];
  });
  return names.every((name) => /^[A-Za-z0-9_][A-Za-z0-9_.-]*$/.test(name)) ? names : undefined;
}
