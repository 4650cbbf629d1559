package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/spf13/pflag"
)

// parseDuration reads a time span as Go writes it, and also with weeks and
// days in front: 2w, 7d, 1d12h.
func parseDuration(s string) (time.Duration, error) {
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

// parseSize reads a number of bytes, with K, M or G for powers of 1,024.
func parseSize(s string) (uint64, error) {
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

// takeKeysMax is how many keys dgm.Take has room for.
const takeKeysMax = 64

// parseKeys reads KEY[,KEY...].
func parseKeys(s string) ([]gearsfs.Key, error) {
	parts := strings.Split(s, ",")
	if len(parts) > takeKeysMax {
		return nil, usagef("%d keys, at most %d", len(parts), takeKeysMax)
	}
	keys := make([]gearsfs.Key, len(parts))
	for i, p := range parts {
		keys[i] = gearsfs.Key(p)
		if err := keys[i].Check(); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

func parseKey(s string) (gearsfs.Key, error) { return gearsfs.Key(s), gearsfs.Key(s).Check() }

// durationFlag is a flag whose value is a DURATION.
type durationFlag struct {
	value time.Duration
	set   bool
}

var _ pflag.Value = (*durationFlag)(nil)

func (f *durationFlag) Type() string   { return "DURATION" }
func (f *durationFlag) String() string { return "" }

func (f *durationFlag) Set(s string) error {
	d, err := parseDuration(s)
	f.value, f.set = d, err == nil
	return err
}

// sizeFlag is a flag whose value is a size in bytes; 0 is "no limit".
type sizeFlag struct {
	value uint64
	set   bool
}

var _ pflag.Value = (*sizeFlag)(nil)

func (f *sizeFlag) Type() string   { return "SIZE" }
func (f *sizeFlag) String() string { return "" }

func (f *sizeFlag) Set(s string) error {
	n, err := parseSize(s)
	f.value, f.set = n, err == nil
	return err
}

// limitFlag is a flag whose value is a number of records; 0 is "no limit".
type limitFlag struct {
	value uint64
	set   bool
}

var _ pflag.Value = (*limitFlag)(nil)

func (f *limitFlag) Type() string   { return "N" }
func (f *limitFlag) String() string { return "" }

func (f *limitFlag) Set(s string) error {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return fmt.Errorf("%q is not a number of records", s)
	}
	f.value, f.set = n, true
	return nil
}

// countFlag is -n: how many records, or all that are there now.
type countFlag struct {
	value uint64
	all   bool
	set   bool
}

var _ pflag.Value = (*countFlag)(nil)

func (f *countFlag) Type() string   { return "N|all" }
func (f *countFlag) String() string { return "" }

func (f *countFlag) Set(s string) error {
	if s == "all" {
		f.all, f.set = true, true
		return nil
	}
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || n == 0 {
		return fmt.Errorf("%q is neither a number from 1 on nor \"all\"", s)
	}
	f.value, f.set = n, true
	return nil
}

// afterFlag is --after: a seq, or the newest one there is now.
type afterFlag struct {
	value gearsfs.Seq
	end   bool
	set   bool
}

var _ pflag.Value = (*afterFlag)(nil)

func (f *afterFlag) Type() string   { return "SEQ|end" }
func (f *afterFlag) String() string { return "" }

func (f *afterFlag) Set(s string) error {
	if s == "end" {
		f.end, f.set = true, true
		return nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return fmt.Errorf("%q is neither a seq nor \"end\"", s)
	}
	f.value, f.set = gearsfs.Seq(n), true
	return nil
}

// formatFlag is -o: text, or JSON for programs.
type formatFlag struct{ json bool }

var _ pflag.Value = (*formatFlag)(nil)

func (f *formatFlag) Type() string   { return "json" }
func (f *formatFlag) String() string { return "" }

func (f *formatFlag) Set(s string) error {
	if s != "json" {
		return fmt.Errorf("%q is not an output format: there is json", s)
	}
	f.json = true
	return nil
}
