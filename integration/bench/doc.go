// Package bench measures the relay from outside, beside baselines in the same run: this machine's figures are its own,
// the ratios carry. Run it with `make bench`.
package bench
