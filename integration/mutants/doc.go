// Package mutants builds the project without one of its safeguards, to see that the tests notice.
//
//	make mutants                                    each mutant, and the cheapest test that fails because of it
//	go test ./integration/mutants -kill -v -run 'TestKilled/fence'      one of them
//	go test ./integration/chaos -run TestMutants    the same mutants as whole relays, among crashes and outages
//
// A [Mutant] is a list of edits to production code: a file, a text that occurs in it exactly once, and the text that
// replaces it. go build and go test read the changed copies by their flag -overlay, so production code has no switches.
// TestApply, which is part of make test, fails when the text of an edit is no longer there, or occurs twice: if you change
// such a line, change the mutant, too.
//
// # To add a mutant
//
// Add it to [All] with the test that must fail, and with a scenario in integration/chaos if a whole relay shows it. A mutant
// that no test kills is a hole in the tests: write the test first.
package mutants
