// Package metrics exposes what a relay does as Prometheus metrics, by way of [relay.Hooks]:
//
//	hooks, err := metrics.New(prometheus.DefaultRegisterer)
//	…
//	r, err := relay.New(relay.Config{Postgres: dsn, NATS: natsURL, Hooks: hooks})
//	…
//	err = metrics.State(prometheus.DefaultRegisterer, r.Status)
//
// # Metrics
//
//	outbox_relay_leader                 gauge      1 while this relay leads, 0 otherwise
//	outbox_relay_term                   gauge      the number of its latest term; 0 before the first
//	outbox_relay_paused                 gauge      1 while it leads and cannot publish
//	outbox_relay_pauses_total{fault}    counter    times that publishing paused, by whose fault: "weather" passes by
//	                                               itself, "setup" is for a person to mend
//	outbox_relay_published_total        counter    events that the stream acknowledged
//	outbox_relay_batched_total          counter    those of them that went in ordered batches
//	outbox_relay_duplicates_total       counter    those of them that the stream had from an earlier attempt
//	outbox_relay_refused_total          counter    times that the broker refused an event; every attempt counts, an
//	                                               outage does not
//	outbox_relay_dead_total{reason}     counter    events given up, which are dead letters now: after max_attempts "attempts", at once as
//	                                               a refusal was "permanent", or unread since they are "unfit"
//	outbox_relay_recoveries_total       counter    times that the stream was read back
//	outbox_relay_recovered_total        counter    events found in the stream then, and settled without publishing
//	outbox_relay_lost_total             counter    events that the broker had acknowledged and lost: they were put back
//	                                               from the archive, and published again
//	outbox_relay_audited_events_total   counter    archived events that were compared with the stream, each once an audit;
//	                                               with relay.audit_interval only (Audit)
//	outbox_relay_violations_total{kind}  counter   events that an audit found "missing", stored "twice" or out of "order",
//	                                               each once; with relay.audit_interval only
//	outbox_relay_publish_lag_seconds    histogram  for how long each acknowledged event had been in the outbox
//	outbox_relay_round_trips_total      counter    round trips to the outbox
//	outbox_relay_fetched_total          counter    rows read from the outbox
//	outbox_relay_settled_total          counter    rows removed from the outbox after they were published
//	outbox_relay_lock_wait_seconds      gauge      for how long it has been waiting for a lock in Postgres; 0 if it waits for none
//	outbox_relay_oldest_transaction_seconds  gauge   age of the transaction that keeps dead rows from being removed, while that
//	                                               slows the relay or is about to; 0 otherwise
//	outbox_relay_database_findings_total{kind}  counter   times that something in Postgres was found to slow or stop the
//	                                               relay: "lock", "slow" (a statement), "horizon" (an old transaction)
//	outbox_relay_kept_rows_total        counter    times that Postgres refused to settle a row or to record its refusal, for a
//	                                               reason of that row's own; it stays in the outbox, and the log names it
//	outbox_relay_repeated_ids_total     counter    events that the stream did not store since another row had the same id
//	outbox_relay_elections_total        counter    times that this relay was elected
//	outbox_relay_leadership_lost_total{reason}  counter   times that it ceased to lead: "stopped", "made_way" for a
//	                                               standby, "lease" lost, "postgres" failed, "deposed" by a later
//	                                               term, "refused" for good
//	outbox_relay_term_started_timestamp_seconds  gauge   when its latest term began, in seconds since 1970; 0 before the
//	                                               first
//	outbox_relay_last_published_timestamp_seconds  gauge   when the stream last acknowledged an event of it; 0 before the
//	                                               first
//	outbox_relay_paused_seconds_total   counter    for how long it led and could not publish, in all
//	outbox_relay_pause_fault{fault}     gauge      1 while it leads and cannot publish, for the fault of the present
//	                                               pause
//	outbox_relay_bytes_published_total  counter    bytes of the payloads that the stream acknowledged
//	outbox_relay_ack_seconds            histogram  how long acknowledgements took; one event at a time is measured
//	outbox_relay_round_trip_seconds     histogram  how long round trips to the outbox took
//	outbox_relay_round_trip_errors_total  counter   round trips to the outbox that failed; each ends a term
//	outbox_relay_recovery_seconds       histogram  how long reading the stream back took
//
// [State] and [Build] add:
//
//	outbox_relay_ready                  gauge      1 if it publishes, or if another relay leads and this one could
//	outbox_relay_standby                gauge      1 if another relay leads and this one could
//	outbox_relay_postgres_up            gauge      1 if it reached Postgres when it last needed it: a leader at each
//	                                               round trip, a standby every two seconds
//	outbox_relay_nats_up                gauge      1 if it reached JetStream when it last needed it
//	outbox_relay_listening              gauge      1 while it leads and hears of new events at once; a leader that does
//	                                               not polls
//	outbox_relay_paused_by_hand         gauge      1 while a person has paused the outbox: no relay publishes
//	outbox_relay_condition{check}       gauge      1 if a condition of exactly-once delivery held when it last connected
//	                                               to NATS, 0 if not: what strict asks for
//	outbox_relay_build_info{version,goversion}  gauge   1; the labels say what runs
//
// [Tables] adds what the tables tell, of a leader and of a standby alike:
//
//	outbox_relay_tables_up              gauge      1 if the numbers below could be read at the latest attempt; 0 if they are old
//	outbox_relay_pending_events         gauge      events in the outbox: exactly up to 10,000, beyond that an estimate
//	outbox_relay_oldest_pending_seconds gauge      age of the oldest event in the outbox, 0 if there is none
//	outbox_relay_dead_letters           gauge      dead letters that somebody has to requeue or discard
//	outbox_relay_held_aggregates        gauge      aggregates whose events wait for a decision about a dead letter (`on_dead = "hold"`)
//	outbox_relay_retrying_aggregates    gauge      aggregates whose events wait for another attempt of a refused one
//	outbox_relay_archive_events         gauge      events in the archive: exactly while it is small, beyond that an estimate
//	outbox_relay_archive_bytes          gauge      what the archive takes on disk, with its indexes
//
// Counters count from the start of the process, over all of its terms. The lag compares the clock of the database
// with that of this host, and is never below 0.
//
// # What to watch
//
// sum(outbox_relay_leader) over all relays of an outbox is 1, except for moments. Call a person if outbox_relay_paused is 1
// for longer than an outage should take, and for any pause of fault "setup", any dead letter and any kept row. After an event
// that the broker lost, look at the broker.
//
// Two relays in one process need registerers that tell them apart, such as those of prometheus.WrapRegistererWith.
package metrics
