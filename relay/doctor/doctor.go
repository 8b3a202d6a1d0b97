package doctor

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/go-outbox/go-outbox/relay"
	"github.com/go-outbox/go-outbox/store"
)

const (
	// patience bounds each question to the broker.
	patience = 5 * time.Second
	// longWait is how long an event may wait before that is worth a warning: an outage of a minute is one.
	longWait = time.Minute
	// freshTrouble is how old a relay's word may be that it cannot publish: it says so again every few seconds.
	freshTrouble = time.Minute
	// samplesTried is how many kinds of pending events are tried, and samplesTold how many of them are named.
	samplesTried = 200
	samplesTold  = 3
)

// Options are what [Run] may be told beside the relay's configuration. The zero value is right for a program that calls
// relay.New.
type Options struct {
	// Check says what is wrong with the configuration; nil for nothing. The default is the error of relay.New. A program that
	// reads settings says it in its own words here, with the place of each.
	Check func() error
	// Embedded tells that the relay has a NATS server of its own, at the address Config.NATS: nobody there is no failure,
	// since that server runs with the relay only.
	Embedded bool
}

// Run looks at all that a relay of this configuration depends on, and says what it found. It needs no relay to run, and does
// not disturb one. A configuration that relay.New would refuse is examined as far as possible. When ctx ends, the checks that
// are left report that.
func Run(ctx context.Context, c relay.Config, o Options) Report {
	if o.Check == nil {
		o.Check = func() error {
			_, err := relay.New(c)
			return err
		}
	}
	d := &doctor{config: c, options: o, report: Report{Strict: c.Strict}}
	d.examineConfiguration()
	d.place = Postgres
	d.examineDatabase(ctx)
	d.place = NATS
	d.examineBroker(ctx)
	return d.report
}

// Unreadable returns the report on a configuration that is not in a form to be examined any further.
func Unreadable(fault error) Report {
	d := &doctor{options: Options{Check: func() error { return fault }}}
	d.examineFaults()
	return d.report
}

// doctor makes the checks, in the order in which one would mend things.
type doctor struct {
	config  relay.Config
	options Options

	place   Place // Of the checks under way.
	report  Report
	pending []store.Sample // Events that are in the outbox, one of each kind.
}

func (d *doctor) examineConfiguration() {
	d.examineFaults()
	switch kind := cmp.Or(d.config.Election.Kind, relay.ElectionPostgres); kind {
	case relay.ElectionNone:
		d.warn(CheckElection, fmt.Sprintf("set it to %q unless something else sees to that", relay.ElectionPostgres),
			"election.kind is none: two relays that run at once publish out of order, and twice")
	default:
		d.ok(CheckElection, "%s", kind)
	}
	if retain := cmp.Or(d.config.Retain, relay.DefaultRetain); retain == relay.NoArchive {
		d.warn(CheckRetain, "set OUTBOX_RETAIN to longer than a server of it may be away, such as 5m",
			"relay.retain is 0: what the broker loses after it has acknowledged it cannot be published again")
	} else {
		d.ok(CheckRetain, "published events are kept for %v", retain)
	}
}

func (d *doctor) examineFaults() {
	d.place = Configuration
	if fault := d.options.Check(); fault != nil {
		d.pass(Failure, CheckConfiguration, fault.Error())
	} else {
		d.ok(CheckConfiguration, "valid")
	}
}

// age is how long something lasts, as precise as a person cares for.
func age(d time.Duration) string {
	if d < time.Minute {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// visible returns s as it is if a terminal shows just that, and quoted otherwise.
func visible(s string) string {
	if s == "" || strings.TrimSpace(s) != s || s[0] == '"' || strings.ContainsFunc(s, func(r rune) bool { return r == unicode.ReplacementChar || !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// many is how many events there are: exactly so many, or about.
func many(c *store.Count) string {
	switch {
	case c == nil:
		return "an unknown number"
	case c.Exact:
		return strconv.FormatInt(c.Rows, 10)
	}
	return fmt.Sprintf("about %d", c.Rows)
}
