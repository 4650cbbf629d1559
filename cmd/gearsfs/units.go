package main

import (
	"fmt"
	"strconv"
	"strings"

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
		if err := keys[i].Check(); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

func parseKey(s string) (gearsfs.Key, error) { return gearsfs.Key(s), gearsfs.Key(s).Check() }

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
