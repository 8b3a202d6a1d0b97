package config

import (
	"fmt"
	"strings"
)

// Error is one fault of a configuration. [Load] returns all it finds as one
// *multierror.Error; errors.As finds the first.
type Error struct {
	// Place is where the fault is: "file:line:column", a file, or
	// "environment".
	Place string

	// Setting is the key or variable as it is spelled there. It is empty for a
	// fault of the file as a whole.
	Setting string

	// Problem is what is wrong with it, and the value found, without
	// passwords.
	Problem string

	// Want is what is accepted. It is empty where nothing is, as for a key
	// that does not exist.
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

// listFaults formats all faults of a configuration, one a line.
func listFaults(faults []error) string {
	var b strings.Builder
	if len(faults) == 1 {
		b.WriteString("the configuration has a fault:")
	} else {
		fmt.Fprintf(&b, "the configuration has %d faults:", len(faults))
	}
	for _, fault := range faults {
		b.WriteString("\n  " + fault.Error())
	}
	return b.String()
}
