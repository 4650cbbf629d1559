// Package units reads the quantities that the commands' flags take: spans of
// time with days and weeks, and sizes in bytes.
package units

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// ParseDuration reads a time span as Go writes it, and also with weeks and
// days in front: 2w, 7d, 1d12h.
func ParseDuration(s string) (time.Duration, error) {
	rest, sum := s, time.Duration(0)
	for _, unit := range []struct {
		letter string
		span   time.Duration
	}{{"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}} {
		number, after, found := strings.Cut(rest, unit.letter)
		if !found {
			continue
		}
		n, err := strconv.ParseFloat(number, 64)
		if err != nil || !(n >= 0 && n*float64(unit.span) < math.MaxInt64/2) { // NaN fails this too
			return 0, fmt.Errorf("%q is not a duration such as 500ms, 2h or 7d", s)
		}
		sum += time.Duration(n * float64(unit.span))
		rest = after
	}
	if rest == "" && s != "" {
		return sum, nil
	}
	d, err := time.ParseDuration(rest)
	if err != nil || d < 0 || sum+d < sum {
		return 0, fmt.Errorf("%q is not a duration such as 500ms, 2h or 7d", s)
	}
	return sum + d, nil
}

// ParseSize reads a number of bytes, with K, M or G for powers of 1,024.
func ParseSize(s string) (uint64, error) {
	digits, shift := s, 0
	if s != "" {
		switch s[len(s)-1] {
		case 'K', 'k':
			digits, shift = s[:len(s)-1], 10
		case 'M', 'm':
			digits, shift = s[:len(s)-1], 20
		case 'G', 'g':
			digits, shift = s[:len(s)-1], 30
		}
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || n > math.MaxUint64>>shift {
		return 0, fmt.Errorf("%q is not a size such as 4096, 64K or 1G", s)
	}
	return n << shift, nil
}

// Duration is a flag whose value is a DURATION.
type Duration struct {
	Value time.Duration
	Given bool
}

var _ pflag.Value = (*Duration)(nil)

func (f *Duration) Type() string   { return "DURATION" }
func (f *Duration) String() string { return "" }

func (f *Duration) Set(s string) error {
	d, err := ParseDuration(s)
	f.Value, f.Given = d, err == nil
	return err
}

// Size is a flag whose value is a size in bytes; 0 is "no limit".
type Size struct {
	Value uint64
	Given bool
}

var _ pflag.Value = (*Size)(nil)

func (f *Size) Type() string   { return "SIZE" }
func (f *Size) String() string { return "" }

func (f *Size) Set(s string) error {
	n, err := ParseSize(s)
	f.Value, f.Given = n, err == nil
	return err
}
