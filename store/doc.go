// Package store is the Postgres side of the outbox: its tables, and everything that reads and writes them.
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
// that is the order of the commits.
//
// # Tables
//
// For an outbox named t, [Outbox.Migrate] creates the tables t (pending events), t_dead (dead letters), t_published (the
// archive, in three parts), t_relay (who leads, and the checkpoint) and t_migrations (the schema's version), the functions
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
// # Waking
//
// A sleeping relay holds an advisory lock exclusively. The insert trigger tries to share the lock, and notifies only if it
// cannot. A producer that shares the lock keeps it until its commit. So a relay that gets the lock exclusively knows that
// every insert that is not yet visible will notify it. [Request] and [FallAsleep] are the relay's side, and [Outbox.Listen]
// hears the notifications. A lost notification costs latency, never an event: the relay polls as well.
//
// A transaction that notifies cannot be prepared (PREPARE TRANSACTION). A producer that uses two-phase commit says
// "set local outbox.notify = off" first; a sleeping relay then finds its events at the next poll.
//
// # Reading
//
// [Term.RoundTrip] is the relay's single round trip: it removes settled rows, records refused ones and fetches all visible
// rows, in one snapshot and in seq order. It never skips a row that commits late, and removes only rows that the request
// names. It runs on the [Session] that holds the leader's lock: a relay that has lost the lock cannot write either.
//
// A fetch begins at a floor: every row with a lower seq has been settled, is held or is passed over (floor.go). The floor is
// never above the seqs that the sequence has given out. It is kept in t_relay as scan_from, so that the next term need not
// scan dead rows again; whoever puts back a row with a lower seq lowers scan_from in the same transaction. With
// Options.HoldDead each fetch looks at it again, so that a command that lets an aggregate go on is noticed in time. [Outbox.Sweep]
// finds rows below the floor that no notification told of, such as those of a session without triggers.
//
// A page is bounded in rows and in the bytes of all columns. A row that can never be published is not read: its payload is
// larger than the broker takes, or a column has an impossible value. The fetch says what is wrong with it.
//
// If Postgres refuses a round trip because of a row, it is repeated with a savepoint for each step. What can be done is done,
// and the response names the other rows (isolate.go). The response also compares the rows that left the outbox, and those that
// reached the archive, with the request: [ErrKept] and [ErrUnarchived] say that something in the database does otherwise.
//
// [Outbox.Watch] watches over the session during a term. A statement that is slow, or that waits for a lock, is a sign of
// life and costs no lease. Watch names whoever is in the way: pid, application, age, lock, and how to end it.
//
// # Recovering
//
// [Outbox.Begin] tells a new leader the [Checkpoint]: events that are still in the table may be stored after this sequence of
// the stream, and none before. The leader reads the stream from there. [Outbox.Settle] removes the rows of events that it
// found, [Outbox.Archive] returns the events that ought to be in the stream besides, and [Outbox.PutBack] puts back those that
// are not. A round trip moves the checkpoint and settles in the same transaction. So a crash of the server, which may undo the
// latest round trips, undoes both or neither.
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
