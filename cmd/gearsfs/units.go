package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/spf13/pflag"
)

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
		if _, err := parseKey(p); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// parseKey reads KEY. Its error shows what is none, cut off where it is long.
func parseKey(s string) (gearsfs.Key, error) {
	if err := gearsfs.Key(s).Check(); err != nil {
		return "", fmt.Errorf("KEY %.60q: %w", s, err)
	}
	return gearsfs.Key(s), nil
}

// counted is a number of things, as in "1 record" and "2 records".
func counted(n uint64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// addrFlag is --node. An empty ADDR is wrong: it is that of a variable that is
// not set, and another node than the one that was meant would be asked.
type addrFlag string

var _ pflag.Value = (*addrFlag)(nil)

func (f *addrFlag) Type() string   { return "ADDR" }
func (f *addrFlag) String() string { return "" }

func (f *addrFlag) Set(s string) error {
	if s == "" {
		return errors.New("ADDR is empty")
	}
	*f = addrFlag(s)
	return nil
}

// limitFlag is a flag whose value is a number; 0 is "no limit".
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
		return fmt.Errorf("%q is not a number from 0 on", s)
	}
	f.value, f.set = n, true
	return nil
}

// count is the value as deliveries are counted.
func (f *limitFlag) count() uint32 { return uint32(min(f.value, math.MaxUint32)) }

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

// timeFlag is a flag whose value is a moment: RFC 3339, a time of today or, where
// that has passed, of tomorrow, or @ and seconds since 1970.
type timeFlag struct{ value time.Time }

var _ pflag.Value = (*timeFlag)(nil)

func (f *timeFlag) Type() string   { return "TIME" }
func (f *timeFlag) String() string { return "" }

func (f *timeFlag) Set(s string) error {
	at, err := parseTime(s, time.Now())
	f.value = at
	return err
}

// secondsMax is the last second that nanoseconds since 1970 can count to.
const secondsMax = math.MaxInt64 / int64(time.Second)

func parseTime(s string, now time.Time) (time.Time, error) {
	if digits, ok := strings.CutPrefix(s, "@"); ok {
		n, err := strconv.ParseUint(digits, 10, 63)
		if err == nil && n > 0 && int64(n) <= secondsMax {
			return time.Unix(int64(n), 0), nil
		}
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", time.DateTime, "2006-01-02 15:04", time.DateOnly} {
		if at, err := time.ParseInLocation(layout, s, now.Location()); err == nil && at.Unix() > 0 && at.Unix() <= secondsMax {
			return at, nil
		}
	}
	for _, layout := range []string{"15:04", time.TimeOnly} {
		clock, err := time.Parse(layout, s)
		if err != nil {
			continue
		}
		at := time.Date(now.Year(), now.Month(), now.Day(), clock.Hour(), clock.Minute(), clock.Second(), 0, now.Location())
		if at.Before(now) {
			at = time.Date(now.Year(), now.Month(), now.Day()+1, clock.Hour(), clock.Minute(), clock.Second(), 0, now.Location())
		}
		return at, nil
	}
	return time.Time{}, fmt.Errorf("%q is not a time such as 2006-01-02T15:04:05Z, 15:04 or @1136214245", s)
}

// rateFlag is how often something may begin: N/s, and also N/m or N/h.
type rateFlag struct {
	every time.Duration // 0: as often as it can
}

var _ pflag.Value = (*rateFlag)(nil)

func (f *rateFlag) Type() string   { return "N/s" }
func (f *rateFlag) String() string { return "" }

func (f *rateFlag) Set(s string) error {
	digits, unit, _ := strings.Cut(s, "/")
	span, ok := map[string]time.Duration{"": time.Second, "s": time.Second, "m": time.Minute, "h": time.Hour}[unit]
	n, err := strconv.ParseFloat(digits, 64)
	if !ok || err != nil || !(n > 0 && float64(span)/n >= 1 && float64(span)/n < math.MaxInt64/2) { // NaN fails this too
		return fmt.Errorf("%q is not a rate such as 10/s or 5/m", s)
	}
	f.every = time.Duration(float64(span) / n)
	return nil
}

// positiveFlag is a flag whose value is a number from 1 on.
type positiveFlag struct {
	value uint64
	set   bool
}

var _ pflag.Value = (*positiveFlag)(nil)

func (f *positiveFlag) Type() string   { return "N" }
func (f *positiveFlag) String() string { return "" }

func (f *positiveFlag) Set(s string) error {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil || n == 0 {
		return fmt.Errorf("%q is not a number from 1 on", s)
	}
	f.value, f.set = n, true
	return nil
}
