package store

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Time budgets of the relay's connections. Together they make sure that a session which nobody can reach any
// more is ended by whichever side is still alive, and with it the locks it holds.
const (
	// keepAlive* find a peer that vanished without a word within about 11 s; the kernel's defaults take hours.
	keepAliveIdle     = 5 * time.Second
	keepAliveInterval = 2 * time.Second
	keepAliveCount    = 3
	tcpUserTimeout    = 8 * time.Second
	// connectionCheck lets Postgres notice a vanished client while a statement runs.
	connectionCheck = time.Second
	// sessionInTransaction is when Postgres ends the session of a relay that was frozen within a transaction: its lease is
	// over by then, and the locks must not stay.
	sessionInTransaction = 6 * time.Second
	// adminInTransaction does the same for a command that somebody has stopped with Ctrl-Z.
	adminInTransaction = time.Minute
)

// What Postgres calls the relay's connections in pg_stat_activity.
const (
	sessionName  = "outbox-relay"
	adminName    = "outbox-relay admin"
	listenerName = "outbox-relay listen"
)

// purpose is what a connection is for.
type purpose struct {
	application   string
	writes        bool              // It is of no use on a standby, even if the DSN allows one.
	inTransaction time.Duration     // How long it may be idle within a transaction; 0 is for ever.
	start         map[string]string // What it has beside everybody's startup settings,
	late          map[string]string // and beside everybody's late settings.
}

// forAdmin is for one short task: migrate, dead letters, the archive.
func forAdmin() purpose { return purpose{application: adminName, inTransaction: adminInTransaction} }

// forListener is for LISTEN, which is idle by nature. A standby has no notifications.
func forListener() purpose { return purpose{application: listenerName, writes: true} }

// forSession is for what the leader does: see [Session].
func forSession() purpose {
	return purpose{
		application:   sessionName,
		writes:        true,
		inTransaction: sessionInTransaction,
		start: map[string]string{
			// Nobody waits for the disk to learn that a row was removed. If the server crashes, the latest removals may
			// be undone: those events are published again, under the same ids, as after any crash between publishing
			// and removing.
			"synchronous_commit": "off",
		},
		late: map[string]string{
			// A statement prepared while the table was empty would scan it sequentially for ever, whatever its
			// size; and a bitmap scan reads all that matches before it returns the first row.
			"enable_seqscan":    "off",
			"enable_bitmapscan": "off",
		},
	}
}

// startSettings are in force on every connection from its first statement on, whatever ALTER ROLE, ALTER DATABASE and
// the server's file say. They are what can end, slow or reinterpret our statements, of all settings of Postgres 14 to 18
// that a role may change, as far as 14 has them: a server refuses a startup parameter that it does not know.
//
// They go with the startup message rather than by statements after it, so that there is no moment without them, and no
// time is spent: the other way costs another round trip. A pooler such as PgBouncer refuses them, which is welcome. It
// would be refused anyway, in any mode: behind one the process ID of a connection is made up, so nobody can tell whether
// the next statement reaches the same session.
func startSettings() map[string]string {
	return map[string]string{
		// Nothing is looked up where others may create things: tables are named with their schemas, functions, operators and
		// types are Postgres' own. A temporary table never comes first.
		"search_path": "pg_catalog, pg_temp",

		// What ends a statement, a transaction or the connection. Whoever gives a statement a limit does so by a context.
		"statement_timeout":    "0",
		"lock_timeout":         "0",
		"idle_session_timeout": "0", // An elector sets it, for the session only.
		"exit_on_error":        "off",

		// What a transaction is, and whether it may write.
		"default_transaction_isolation":  "read committed",
		"default_transaction_read_only":  "off",
		"default_transaction_deferrable": "off", // A serializable read-only one would wait for others.

		// How text is read and written. Some is compared, such as the names of types.
		"client_encoding":             "UTF8",
		"standard_conforming_strings": "on",
		"backslash_quote":             "safe_encoding",
		"bytea_output":                "hex",
		"datestyle":                   "ISO, MDY",
		"intervalstyle":               "postgres",
		"timezone":                    "UTC",
		"extra_float_digits":          "1",
		"array_nulls":                 "on",
		"transform_null_equals":       "off",
		"quote_all_identifiers":       "off",

		// Rows that a policy hides from us are an error, not silently no rows: a hidden row is a lost event.
		"row_security": "off",

		// The archive's rows are found where they were seen.
		"default_table_access_method": "heap",

		// What makes a plan, beside enable_*.
		"jit":                  "off", // Compiling takes longer than our statements do.
		"plan_cache_mode":      "auto",
		"constraint_exclusion": "partition",
		"from_collapse_limit":  "8",
		"join_collapse_limit":  "8",

		"tcp_keepalives_idle":              seconds(keepAliveIdle),
		"tcp_keepalives_interval":          seconds(keepAliveInterval),
		"tcp_keepalives_count":             strconv.Itoa(keepAliveCount),
		"tcp_user_timeout":                 milliseconds(tcpUserTimeout),
		"client_connection_check_interval": milliseconds(connectionCheck),
	}
}

// lateSettings are set once the server's version is known, if it has them. All enable_* get their built-in values as well,
// whatever they are called in that version: our statements are written for them.
func lateSettings() map[string]string {
	return map[string]string{
		"transaction_timeout":  "0",   // Since 17.
		"debug_parallel_query": "off", // Since 16,
		"force_parallel_mode":  "off", // and before.
	}
}

// startOf returns all startup settings of a connection.
func startOf(p purpose) map[string]string {
	settings := startSettings()
	settings["application_name"] = p.application
	settings["idle_in_transaction_session_timeout"] = milliseconds(p.inTransaction)
	maps.Copy(settings, p.start)
	return settings
}

// lateOf returns the names and values of all late settings of a connection.
func lateOf(p purpose) (names, values []string) {
	settings := lateSettings()
	maps.Copy(settings, p.late)
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		names, values = append(names, name), append(values, settings[name])
	}
	return names, values
}

// pinnedNames are those of all settings that a DSN cannot change.
func pinnedNames() []string {
	names := slices.Collect(maps.Keys(startOf(purpose{})))
	names = slices.AppendSeq(names, maps.Keys(lateSettings()))
	slices.Sort(names)
	return names
}

func isPinned(name string) bool {
	return strings.HasPrefix(name, "enable_") || slices.Contains(pinnedNames(), name)
}

func seconds(d time.Duration) string      { return strconv.Itoa(int(d / time.Second)) }
func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }
