package config

import (
	"fmt"
	"strings"
)

// Errors are all faults of a configuration that [Load] has found, in the order of the file, then of the environment.
// Errors.As finds the first [*Error].
type Errors []*Error

// Error lists the faults, one a line.
func (f Errors) Error() string {
	var b strings.Builder
	if len(f) == 1 {
		b.WriteString("the configuration has a fault:")
	} else {
		fmt.Fprintf(&b, "the configuration has %d faults:", len(f))
	}
	for _, fault := range f {
		b.WriteString("\n  " + fault.Error())
	}
	return b.String()
}

// Unwrap returns the faults.
func (f Errors) Unwrap() []error {
	errs := make([]error, len(f))
	for i, fault := range f {
		errs[i] = fault
	}
	return errs
}

// Error is one fault of a configuration. It shows no password.
type Error struct {
	// Place is where the fault is: "file:line:column", a file, "environment", or "default" for a value that nobody set.
	Place string

	// Setting is the key or variable as it is spelled there. It is empty for a fault of the file as a whole.
	Setting string

	// Problem is what is wrong with it.
	Problem string

	// Want is what is accepted. It is empty where Problem says it, and where nothing is, as for a key that does not exist.
	Want string

	// Hint is advice, if there is any to give.
	Hint string
}

// Error joins the parts on one line.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Place)
	if e.Setting != "" {
		b.WriteString(": " + e.Setting)
	}
	b.WriteString(": " + e.Problem)
	if e.Want != "" {
		b.WriteString(", want " + e.Want)
	}
	if e.Hint != "" {
		b.WriteString(" (" + e.Hint + ")")
	}
	return b.String()
}
