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
// relays' settings are; it does not decide what the processes are at meanwhile, so it may take some attempts.
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
//   - a relay is killed, frozen (by SIGSTOP) or restarted gracefully, or all are, one after the other
//   - its line to NATS or to Postgres is cut, loses all answers, or is late
//   - Postgres crashes (immediate stop), or ends the relays' sessions
//   - a nats-server is killed or frozen; one that is alone goes back to an earlier copy of its store
//   - the stream is full (max_msgs or max_bytes, discard new) or deleted
//
// Most last for 100 to 400 ms, one in thirty for longer than the window, up to longer than lease and window together.
// An episode has ended well when all that had been committed before the end of its last fault is settled, within 45 s.
// After the last one the producers stop, and what they committed is compared with what the stream holds.
//
// # What does not happen
//
// These are no faults that the relay promises to survive, so none of them is drawn:
//
//   - in a cluster, the stores of two servers of three go back to an old copy
//   - messages are purged or deleted one by one, or somebody else writes to the events' subjects
//   - the broker loses what is older than the archive: the worlds keep one for 30 minutes, and live for one or two
//   - a line is late by more than the duplicate window: what protects from a plain publish that late is the window
//     alone
//   - Postgres forgets what a producer committed (synchronous_commit = off)
//
// # Mutants
//
// With the build tag mutants, the relay has switches that turn one safeguard off: the environment variable MUTANT names
// it. TestMutants does to each mutant what must give it away, and to an intact relay the same. Without the tag the switches
// compile to nothing.
//
//	| mutant           | without the safeguard                                        | killed by                                                                                | what was seen                                                  |
//	|------------------|--------------------------------------------------------------|------------------------------------------------------------------------------------------|----------------------------------------------------------------|
//	| recover          | the stream is not read back at the beginning of a term       | killed between publishing and settling, restarted past the duplicate window              | a1: number 1 is stored twice                                   |
//	| fence            | an ordered batch begins without the fence's header           | a leader's batch is 6 s late; it is killed, and another publishes the same meanwhile     | hot: number 2 is stored twice                                  |
//	| lease            | the lease is not looked at before an event or a write        | a leader stops between two events for longer than lease and window; another leads        | a19: number 19 is stored twice                                 |
//	| reconnect-buffer | nats.go keeps its buffer for times without a connection      | an event is published while nats-server is away, and given up before it comes back       | stored when nats-server was back, though given up before       |
//	| one-in-flight    | an aggregate's next event does not wait for the one before   | the broker refuses an event for its size, and takes it later                             | hot: number 2 is stored after 12                               |
//	| delete-by-key    | what is published is removed by range                        | an event commits late, below others that are on their way                                | number 3 is missing                                            |
//	| duplicate-ack    | that the stream has an event already counts as a failure     | an event comes again under an id that the stream knows                                   | the outbox does not get empty                                  |
//	| audit            | what a look at the stream finds is ignored                   | the stream is deleted and created anew, while there is nothing to publish                | what it held does not come back                                |
//	| in-process       | that an event is being stored (10158) counts as success      | a cluster without a majority gets an event twice, then loses its leader                  | acknowledged and not stored                                    |
//	| fitness          | a leader that cannot publish stays                           | a leader loses its broker, while a standby has it                                        | the standby does not publish                                   |
//
// Two are killed by what the publisher alone does, reconnect-buffer and in-process: around it, the relay has a second
// safeguard against each. It publishes nothing while it is not connected, and after an outcome in doubt its fence follows
// on the same connection; and when that fence is stored, nothing from before is in process any more.
package chaos
