// Package store is the Postgres side of the outbox: its tables, and everything that reads and writes them. Producers need
// [Insert] or [InsertSQL]; relays [Open], [Outbox.Begin] and the [Term] that it returns; operators the other methods of [Outbox].
// README.md has how a relay is woken, reads the table and recovers.
//
// # Producing
//
// [Insert] adds events in a caller's pgx transaction, [InsertSQL] in a database/sql one; passing a pool
// instead of a transaction does not compile. Plain SQL is just as good, from any language:
//
//	select outbox_emit('users', 'User', '17', 'UserCreated', '{"path":"C:\\new"}')
//	insert into outbox (topic, aggregate_type, aggregate_id, event_type, data)
//	values ('users', 'User', '17', 'UserCreated', convert_to('{"path":"C:\\new"}', 'UTF8'))
//
// The function takes text, json, jsonb or bytea. An INSERT must convert text: Postgres reads a literal for a bytea column, or
// a parameter of unknown type, in the escape format, which removes backslashes or fails.
//
// The table refuses events that could never be published: those with an empty name, a nil id, or headers that are not an
// object of strings, numbers, booleans and arrays of these. [Insert] refuses more, before it sends anything: see package
// event. A producer's role needs [Table.ProducerGrants] only.
//
// An event exists once its transaction has committed, and never if the transaction rolled back. Events are in the order of
// seq, which is drawn at the insert. If a producer locks the aggregate's row before it inserts the event, as an UPDATE does,
// that is the order of the commits. A transaction that notifies a sleeping relay cannot be prepared (PREPARE TRANSACTION): a
// producer that uses two-phase commit says "set local outbox.notify = off" first, and the relay finds its events at the next
// poll.
//
// # Tables
//
// For an outbox named t, [Outbox.Migrate] creates the tables t (pending events), t_dead (dead letters), t_published (the
// archive, in three parts), t_relay (who leads, and the checkpoint), t_candidates (who could not), t_pause (whether a person
// has paused it) and t_migrations (the schema's version), the functions
// t_wake and t_check and their triggers, and the function t_emit. It upgrades tables that are in use, step by step: no
// producer waits for it, and a relay of the previous version goes on meanwhile (step.go). A row's states:
//
//	in t, attempts = 0       pending
//	in t, retry_at set       pending: the broker refused it; it waits for another attempt, and its aggregate with it
//	in t, given_up_at set    a dead letter that could not be moved to t_dead; it is not fetched, and the commands show it
//	in t_dead                a dead letter with a number of its own; it waits for a person to requeue or discard it
//	in t_published           stored in the stream; kept for Options.Retain, in case the stream loses it
//	gone                     stored in the stream
//
// The archive's parts are filled in turn, each for half of Retain. The oldest part is truncated before it is filled again, so
// it costs nothing to remove events from the archive. A long reader, such as a backup, delays that, but not the relay. A BRIN
// index on each part, which the leader keeps summarized, finds the events that were archived lately.
//
// # Connecting
//
// One function makes every connection. It pins, as startup parameters, all settings of Postgres that our statements rely on,
// whatever ALTER ROLE and ALTER DATABASE say: search_path, client_encoding, the time-outs, what a transaction is, how text is
// written, which plans are made, and that rows hidden by row-level security are an error. search_path has only Postgres' own
// schema, so no function, operator or type of anybody else is ever called. ([Insert] runs on the caller's connection and
// names the schemas itself.) The DSN is read anew at each connection, with the files that it and [Options] name, so a rotated
// password needs no restart. Options.BeforeConnect is for passwords that are made for each connection.
//
// If the DSN names several servers, or a server has several addresses, each has its own time-out, and the first that takes
// writes is used. A trigger function that somebody has put on the outbox runs with our search_path: it must name its schemas,
// or set its own search_path.
//
// A relay has up to four connections: the session, the listener, the watcher, which finds out what the session waits for, and
// one for tasks beside the term, such as reading the archive. A command has one. A CONNECTION LIMIT must leave room for all
// relays.
//
// # Failures
//
// Errors say what to do. Those that callers branch on are the Err… variables, and [Fatal] tells which of them do not heal by
// waiting. A connection that breaks is replaced at the next use. [Open] says what is wrong with a DSN, and quotes nothing of
// it. Poolers are refused ([ErrPooler]): in transaction mode, locks and notifications silently fail. Nobody can tell from
// outside which mode a pooler is in, since it makes up the process ID in each.
//
// A relay that names another stream than the one that the outbox is relayed to is refused ([ErrOtherStream]), unless
// Options.AdoptStream is set.
package store
