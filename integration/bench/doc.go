// Package bench measures the relay from outside, beside baselines in the same run: this machine's figures are its own,
// the ratios carry. Run it with `make bench PACKAGES=./integration/bench`; it ends with all results as a table.
//
// The baseline is the loop that one would write in an afternoon: select a page, publish it asynchronously with the same
// headers, wait, delete it, commit.
package bench
