// Package chaos tries to make the relay break its promise: everything that is committed is in the stream once, in the
// order of its aggregate, whatever fails.
//
//	go test ./integration/chaos              two small worlds with known seeds
//	make chaos                               new worlds for three minutes, then the mutants, for as long at most
//	make chaos DURATION=1h                   the same for an hour
//	make chaos SEED=42                       with seeds from 42 on
//	go test ./integration/chaos -v -run TestChaos -seed 42 -episodes 40    the one world of that seed, once more
//
// A failed test names its seed. The seed decides which faults come, in which order, how long they last and what the
// relays' settings are. It does not decide what the processes do meanwhile, so it may take some attempts to see the fault again.
//
// # What happens
//
// A world has a Postgres, one nats-server or a cluster of three, and two or three relays, each in a process of its own.
// Between each relay and each server there is a toxiproxy. The duplicate window is 2 to 3 s, so that it is no help.
// Three producers raise the versions of forty accounts, under row locks, and tell of each in the same transaction; a
// quarter of them roll back, and some write two hundred events at once.
//
// A world lives through forty episodes. In each, one to four faults overlap, in different places:
//
//   - a relay is killed, frozen (by SIGSTOP) or restarted gracefully, or all are, one after the other; or the leader is
//     stopped, up to three times in a row
//   - its line to NATS or to Postgres is cut, loses all answers, or is late
//   - Postgres crashes (immediate stop), or ends the relays' sessions
//   - a nats-server is killed or frozen; one that is alone goes back to an earlier copy of its store
//   - the stream is full (max_msgs or max_bytes, discard new), its limits are lowered below what it holds, or it is deleted
//   - the relays' NATS account may store no more, not publish what is large, or not publish to a subject of some events
//
// Most last for 100 to 400 ms, one in thirty for longer than the window, up to longer than lease and window together.
// An episode has ended well when all that had been committed before the end of its last fault is settled, within 45 s.
// After the last one the producers stop, and what they committed is compared with what the stream holds.
//
// One episode in four is a trial of one fault alone. So more can be demanded: see the table. A trial begins once a relay leads,
// another is ready to take over, and all replicas are current. If that takes longer than 15 s, as after a leader has made way,
// the trial is left out and counted. In a cluster, everything may take twice as long.
//
//	| trial              | what happens                                                                | what must hold                                                       |
//	|--------------------|-----------------------------------------------------------------------------|----------------------------------------------------------------------|
//	| blind leader       | the leader's lines to NATS are cut, or lose all answers                     | a standby has published all within 10 s, before they are mended      |
//	| denied subject     | a reload denies a subject, or a whole topic, to the relays' NATS user       | its events are dead letters that name it; the others are stored      |
//	|                    |                                                                             | within 5 s; the stream is read back 3 times at most                  |
//	| replaced stream    | the stream is deleted, and created anew or restored from a backup within    | each aggregate is in order, and has what the archive has             |
//	|                    | 50 ms, while producers write or rest                                        |                                                                      |
//	| lowered limits     | max_msg_size or max_payload is lower than some events                       | these are dead letters; the others are stored within 5 s             |
//	|                    | the stream's or the account's limit is lower than what is there, up to 6.5 s | all is stored within 5 s after it is raised; no event is given up    |
//	| hand-over          | the leader is stopped, up to four times in a row                            | all is stored within 5 s; the successor finds nothing in the stream  |
//	|                    |                                                                             | that is still in the table                                           |
//
// What was refused is requeued in the end (outbox-relay dead requeue), and must be stored then.
//
// # What does not happen
//
// The relay does not promise to survive these faults, so they never happen here:
//
//   - in a cluster, the stores of two servers of three go back to an old copy
//   - messages are purged or deleted one by one, or somebody else writes to the events' subjects
//   - the stream is replaced while a relay is frozen, or while its line to NATS is late or mute: the new stream may store what
//     the relay had sent to the old one, before what is lost
//   - the stream is deleted while a nats-server is frozen or starts: if then a relay creates it while its deletion is under way,
//     nats-server 2.15.2 has a stream that answers questions and takes nothing, until the server restarts
//   - a row has the seq of one that was published before, and the broker loses both: only one at a time can come back
//   - the broker loses what is older than the archive: the worlds keep one for 30 minutes, and live for one or two
//   - a line is late by more than the duplicate window: only the window protects from a plain publish that is so late
//   - Postgres forgets what a producer committed (synchronous_commit = off)
//
// # Mutants
//
// Package integration/mutants builds the relay without one of its safeguards, and runs the cheapest test that notices.
// TestMutants runs each such relay as a whole, and makes happen what must show its fault; then it does the same to an intact relay.
//
//	| mutant           | without the safeguard                                        | killed by                                                                                | what was seen                                                  |
//	|------------------|--------------------------------------------------------------|------------------------------------------------------------------------------------------|----------------------------------------------------------------|
//	| recover          | the stream is not read back at the beginning of a term       | killed between publishing and settling, restarted past the duplicate window              | a1: number 1 is stored twice                                   |
//	| fence            | an ordered batch begins without the fence's header           | a leader's batch is 6 s late; it is killed, and another publishes the same meanwhile     | hot: number 2 is stored twice                                  |
//	| lease            | the lease is not looked at before an event or a write        | a leader stops between two events for longer than lease and window; another leads        | a19: number 19 is stored twice                                 |
//	| reconnect-buffer | nats.go keeps its buffer for times without a connection      | an event is published while nats-server is away, and given up before it comes back       | stored when nats-server was back, though given up before       |
//	| one-in-flight    | an aggregate's next event does not wait for the one before   | the broker refuses an event because its subject is full, and takes it later              | hot: number 4 is stored after 6                                |
//	| delete-by-key    | what is published is removed by range                        | an event commits late, below others that are on their way                                | number 3 is missing                                            |
//	| duplicate-ack    | that the stream has an event already counts as a failure     | an event comes again under an id that the stream knows                                   | the outbox does not get empty                                  |
//	| verify           | what loss detection finds is ignored                         | the stream is deleted and created anew, while there is nothing to publish                | what it held does not come back                                |
//	| in-process       | that an event is being stored (10158) counts as success      | a cluster without a majority gets an event twice, then loses its leader                  | acknowledged and not stored                                    |
//	| fitness          | a leader that cannot publish stays                           | a leader loses its broker, while a standby has it                                        | the standby does not publish                                   |
//
// Two of them, reconnect-buffer and in-process, are killed by a test of the publisher alone: the relay around it has a second
// safeguard against each. It publishes nothing while it is not connected, and after an outcome in doubt its fence follows
// on the same connection; and when that fence is stored, nothing from before is in process any more. A relay that keeps an
// archive survives delete-by-key: it counts what was removed, pauses, and puts back what it did not find in the stream.
package chaos
