package doctor

import (
	"context"
	"errors"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
)

// aside collects what a connection complains of beside the answers, such as a permission that it lacks.
type aside struct {
	mu     sync.Mutex // Protects what follows.
	errors []string
	refuse context.CancelCauseFunc // Ends the question that is asked; nil if none is.
}

// ask asks a question. What is not permitted is not answered but complained of, and then that is the error.
func (a *aside) ask(ctx context.Context, question func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ctx, refuse := context.WithCancelCause(ctx)
	defer refuse(nil)
	a.asking(refuse)
	defer a.asking(nil)
	err := question(ctx)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (a *aside) asking(refuse context.CancelCauseFunc) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refuse = refuse
}

func (a *aside) add(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.errors = append(a.errors, err.Error())
	if a.refuse != nil && errors.Is(err, nats.ErrPermissionViolation) {
		a.refuse(err)
	}
}

// String is to follow another error's text.
func (a *aside) String() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.errors) == 0 {
		return ""
	}
	return " (" + strings.Join(a.errors, "; ") + ")"
}
