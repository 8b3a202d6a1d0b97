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
// The function takes text, json, jsonb or bytea. Without it text must be converted: a literal, or a parameter of no known
// type, for a bytea column is read in the escape format, which takes backslashes away or fails.
//
// The table refuses what could never be published: empty names, a nil id, headers that are no object of strings, numbers,
// booleans and arrays of these. [Insert] refuses more, before it sends anything: see package event. A producer's role needs
// [Table.ProducerGrants] only.
//
// An event exists once its transaction has committed, and never if it rolled back. The order of events is that
// of seq, which is drawn at the insert: for an aggregate whose row is locked before its event is inserted, as an
// UPDATE does, that is the order of the commits.
//
// # Tables
//
// [Outbox.Migrate] creates, for an outbox named t, the tables t (events that wait), t_dead (events that were
// given up), t_published (the archive, in three parts), t_relay (who leads, and the checkpoint) and t_migrations (the
// schema's version), the functions t_wake and t_check and their triggers, and the function t_emit. It upgrades tables that are in use, step by
// step: no producer waits for it, and the relay of the version before goes on beside it (step.go). A row's states:
//
//	in t, attempts = 0       waits to be published
//	in t, retry_at set       was refused by the broker; waits for another attempt, and its aggregate with it
//	in t, given_up_at set    was given up, and could not be moved to t_dead; is not fetched, and the commands show it
//	in t_dead                was given up, a dead letter with a number of its own; waits for a person to requeue or discard it
//	in t_published           is stored in the stream; kept for Options.Retain, in case that the stream loses it
//	gone                     is stored in the stream
//
// The archive's parts are filled in turn, each for half of Retain, and the oldest is truncated before it is filled again:
// what leaves the archive costs nothing. Whoever reads it for long, such as a backup, makes it wait, not the relay. A BRIN
// index on each part, which the leader keeps summarized, leads to what was archived lately.
//
// # Waking
//
// A sleeping relay holds an advisory lock exclusively; the insert trigger tries to share it, and notifies only
// if it cannot. A producer that could share it keeps it to its commit, so a relay that gets it exclusively
// knows that no insert is under way that it would not be told of. [Request] and [FallAsleep] have the relay's
// side of it, [Outbox.Listen] hears the notifications. Losing one costs latency, never an event: the relay
// polls as well.
//
// A transaction that notifies cannot be prepared (PREPARE TRANSACTION). A producer that uses two-phase commit says
// "set local outbox.notify = off" first; a sleeping relay then finds its events at the next poll.
//
// # Reading
//
// [Outbox.Exchange] is the relay's single round trip: it removes what is settled, records what failed and
// fetches all visible rows, in one snapshot and in seq order. It never skips rows that commit late, and
// never removes one that it was not told to. It runs on the [Session] that holds the leader's lock, so whoever
// has lost the lock has lost the way to write, too.
//
// A fetch begins at a floor: every row with a lower seq has been settled, is held or is passed over (floor.go). The floor is
// never above what the sequence has given out. It is kept in t_relay as scan_from, so that the next term need not scan dead
// rows again; whoever puts a row with a lower seq back lowers scan_from in the same transaction. [Outbox.Sweep] finds rows
// below the floor that no notification told of, such as those of a session without triggers.
//
// A page is bounded in rows and in the bytes of all columns. A row that can never be published, because its payload is
// larger than the broker takes or a column is not what it has to be, is not read: the fetch says what is wrong with it.
//
// An exchange that Postgres refuses because of a row is repeated with a savepoint for each step: what can be done is done,
// and the reply names the rows for which it cannot (isolate.go). The reply also compares what left the outbox, and what the
// archive has, with what was asked: [ErrKept] and [ErrUnarchived] say that something in the database does otherwise.
//
// [Outbox.Watch] looks after the session beside a term. A statement that is slow, or that waits for a lock, is a sign of
// life and costs no lease. Watch names whoever is in the way: pid, application, age, lock, and how to end it.
//
// # Recovering
//
// [Outbox.Begin] tells a new leader the [Checkpoint]: a lower bound of where in the stream there may be events that are
// still in the table. [Outbox.Settle] removes those that were found there, [Outbox.Archive] tells what else ought to be
// there, and [Outbox.PutBack] puts back what is not. The checkpoint moves with what an exchange settles, in the same
// transaction, so that a crash of the server, which may undo the latest exchanges, undoes both or neither.
//
// # Connecting
//
// One function makes every connection. It pins, as startup parameters, all settings of Postgres that our statements rely on,
// whatever ALTER ROLE and ALTER DATABASE say: search_path (only Postgres' own schema, so no function, operator or type of
// anybody else's is ever called; [Insert] runs on the caller's connection and names the schemas itself), client_encoding,
// the time-outs, what a transaction is, how text is written, which plans are made, and that rows hidden by row-level
// security are an error. The DSN is read anew at each connection, with the files that it and [Options] name, so a rotated
// password needs no restart; Options.BeforeConnect is for passwords that are drawn for each connection.
//
// Of several servers, or several addresses of one, each has its own time, and the first that takes writes is used. A
// function that somebody has put on the outbox, as a trigger, runs with our search_path: it names its schemas, or sets its
// own search_path.
//
// A relay has up to four connections: the session, the listener, the watcher, which looks what the session waits for, and
// one for tasks beside the term, such as reading the archive. A command has one. A CONNECTION LIMIT has to leave room for all relays.
//
// # Failures
//
// Errors say what to do; those that callers branch on are the Err… variables, and [Fatal] tells which of
// them waiting does not heal. A connection that breaks is replaced at the next use. What is wrong with a DSN, [Open] says,
// and quotes nothing of it. Poolers are refused ([ErrPooler]): in transaction mode locks and notifications silently do not
// work through one. Nobody can tell from outside which mode a pooler is in, since it makes up the process ID in each.
//
// A relay that names another stream than the one that the outbox goes to is refused ([ErrOtherStream]), unless
// Options.AdoptStream is set.
package store
