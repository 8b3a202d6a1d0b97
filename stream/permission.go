package stream

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/go-outbox/go-outbox/stream/excerpt"
)

// A PermissionError says that our user may not do something on a subject.
type PermissionError struct {
	// Subject is what was denied.
	Subject string

	// Subscribe says that our user may not subscribe to the subject; otherwise it
	// may not publish to it.
	Subscribe bool

	cause error
}

// Error names the permission to give. The text is the same for all subjects of a
// kind, so that the log tells it once.
func (e *PermissionError) Error() string {
	verb := "publish"
	if e.Subscribe {
		verb = "subscribe"
	}
	text := fmt.Sprintf("the relay's NATS user may not %s to %s: permit it", verb, excerpt.To(e.Permission(), maxRefusal/4))
	if e.Subscribe {
		text += ", or set nats_inbox_prefix (ConnectOptions.InboxPrefix) to what it may subscribe to"
	}
	return text
}

// Unwrap returns the violation as nats.go tells it.
func (e *PermissionError) Unwrap() error { return e.cause }

// Permission returns the subject to permit, with wildcards where the next subject
// of its kind will be another one.
func (e *PermissionError) Permission() string {
	tokens := strings.Split(e.Subject, ".")
	if tokens[0] == controlPrefix && len(tokens) == 3 {
		return strings.Join(tokens[:2], ".") + ".*"
	}
	if e.Subscribe {
		return inboxesOf(tokens)
	}
	for i, token := range tokens {
		// $JS.API.CONSUMER.CREATE.<stream>.<consumer>[.<filter>], and others with an operation of two words.
		if token != "CONSUMER" || tokens[0] != "$JS" {
			continue
		}
		keep := i + 3
		if i+1 < len(tokens) && (tokens[i+1] == "MSG" || tokens[i+1] == "DURABLE") {
			keep++
		}
		if keep < len(tokens) {
			return strings.Join(tokens[:keep], ".") + ".>"
		}
	}
	return e.Subject
}

// inboxesOf returns the subject of all inboxes, given one: <prefix>.<unique>, perhaps
// followed by tokens that are wildcards.
func inboxesOf(tokens []string) string {
	for len(tokens) > 2 && (tokens[len(tokens)-1] == ">" || tokens[len(tokens)-1] == "*") {
		tokens = tokens[:len(tokens)-1]
	}
	return strings.Join(tokens[:max(len(tokens)-1, 1)], ".") + ".>"
}

var violationText = regexp.MustCompile(`Permissions Violation for (Publish|Subscription) to ("(?:[^"\\]|\\.)*")`)

// AsPermissionError returns what a permission violation, as nats.go tells it, is about;
// false if the error is none, or one of another kind.
func AsPermissionError(err error) (*PermissionError, bool) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return nil, false
	}
	parts := violationText.FindStringSubmatch(err.Error())
	if parts == nil {
		return nil, false
	}
	subject, unquoting := strconv.Unquote(parts[2])
	return &PermissionError{Subject: subject, Subscribe: parts[1] == "Subscription", cause: err}, unquoting == nil
}
