package persist

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/gearsfs/gearsfs"
)

// A data directory begins with an empty state in state/ and an empty log. When
// another node's snapshot is installed it begins anew with that: the state is
// then in state-1/, state-2/ and so on, the log behind the snapshot's entry. A
// small text file, base, says so, and its renaming is the moment at which the
// new state and the new log replace the old ones together:
//
//	move incoming/ID to state-N, sync both   else: N is removed at the next Open
//	open it                                  likewise
//	write base.tmp, sync it                  likewise
//	rename it to base, sync the directory    now the state is N, and the log's front is to be base's
//	reset the log to base's                  where that is missing Open does it
//	remove the state before                  where that is missing Open does it
//
// What the log has to be is told from its front: it never goes back behind
// base's entry, so a front before that was not reset yet.

// base says what state and log begin with.
type base struct {
	state       string // the directory of the state
	index, term uint64 // the snapshot's; 0 where there was none
	hard        []byte // the hard state of the log behind it
}

const (
	baseTitle    = "gearsfs base"
	hardBytesMax = 1024 // of what is written in a text
)

func (b base) format() []byte {
	return formatText(baseTitle, textLine{"state", b.state}, textLine{"index", strconv.FormatUint(b.index, 10)},
		textLine{"term", strconv.FormatUint(b.term, 10)}, textLine{"hard", hex.EncodeToString(b.hard)})
}

func parseBase(text []byte) (base, error) {
	lines, ok, err := parseText(baseTitle, text)
	if err != nil {
		return base{}, err
	}
	if !ok || len(lines) != 4 || lines[0].name != "state" || lines[1].name != "index" || lines[2].name != "term" || lines[3].name != "hard" {
		return base{}, gearsfs.ErrDamaged.Because("not a base")
	}
	b := base{state: lines[0].value}
	_, isState := stateNumber(b.state)
	var errs [3]error
	b.index, errs[0] = strconv.ParseUint(lines[1].value, 10, 64)
	b.term, errs[1] = strconv.ParseUint(lines[2].value, 10, 64)
	b.hard, errs[2] = hex.DecodeString(lines[3].value)
	if err := errors.Join(errs[:]...); err != nil || !isState {
		return base{}, gearsfs.ErrDamaged.Because("not a base: %v", err)
	}
	return b, nil
}

// stateNumber tells the names of states apart: state, state-1, state-2, ...
func stateNumber(name string) (n uint64, ok bool) {
	if name == stateName {
		return 0, true
	}
	digits, ok := strings.CutPrefix(name, stateName+"-")
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, ok && err == nil && n > 0 && numberedState(n) == name
}

func numberedState(n uint64) string { return fmt.Sprintf("%s-%d", stateName, n) }

// readBase reads base; without one the state is where it was made.
func (d *Data) readBase() (base, error) {
	path := d.path(baseName)
	text, err := readText(d.fs, path)
	if isNotExist(err) {
		return base{state: stateName}, nil
	}
	if err != nil {
		return base{}, err
	}
	b, err := parseBase(text)
	if err != nil {
		return base{}, gearsfs.ErrDamaged.Because("%s: %v", path, err)
	}
	return b, nil
}

// Install makes what was received the state, and empties the log behind entry
// (index, term), with that hard state; nil leaves it as it is. The snapshot is
// verified, as of that entry, and not read any more; index is behind what was
// cut off the log. When Install returns without an error all of it is durable,
// and State is the same object with the new tables. Views that were taken
// before stay readable until they are closed. The open batch must be empty, and
// no iterator of the State's open. Only the goroutine that applies entries
// calls it.
//
// After an error state and log are as before, or the log refuses every later
// change and only opening the data again tells which they are: the old ones or
// the new. The snapshot may be gone. Errors: gearsfs.ErrInvalid, a condition
// above; gearsfs.ErrNoSpace; gearsfs.ErrDamaged.
func (d *Data) Install(in *Incoming, index, term uint64, hard []byte) error {
	if hard == nil {
		hard = d.Log.HardState()
	}
	err := d.State.empty()
	if front := d.Log.First() - 1; err == nil && index <= front {
		err = gearsfs.ErrInvalid.Because("the log was cut off at entry %d", front)
	}
	if err == nil && len(hard) > hardBytesMax {
		err = gearsfs.ErrTooBig.Because("a hard state of %d bytes", len(hard))
	}
	if err == nil {
		err = d.install(in, index, term, hard)
	}
	if err != nil {
		return fmt.Errorf("install a snapshot: %w", err)
	}
	return nil
}

func (d *Data) install(in *Incoming, index, term uint64, hard []byte) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.verified {
		return gearsfs.ErrInvalid.Because("the snapshot is not verified")
	}
	n, _ := stateNumber(d.base.state)
	next := base{state: numberedState(n + 1), index: index, term: term, hard: hard}
	var t *tables
	reset, err := d.Log.reset(index, term, hard, func() (err error) {
		in.verified = false
		clear(in.have)
		if t, err = d.moveIn(in.dir, next); err != nil {
			return err
		}
		// From here on what Open finds may be the new state.
		if err = renameTemp(d.fs, d.dir, baseName); err != nil {
			return d.Log.breakBy(err)
		}
		d.base = next
		return nil
	})
	switch {
	case reset: // what is left to do is cleaning up
		return errors.Join(err, d.State.replace(t))
	case t != nil:
		return errors.Join(err, t.close())
	}
	return err
}

// moveIn opens what was received at dir in its place, and writes what will say
// so. After an error nothing of it is left.
func (d *Data) moveIn(dir string, next base) (t *tables, err error) {
	path := d.path(next.state)
	if err := d.fs.RemoveAll(path); err != nil { // of an Install that failed
		return nil, err
	}
	err = d.fs.Rename(dir, path)
	for _, parent := range []string{d.dir, d.path(incomingName)} {
		if err == nil {
			err = syncDir(d.fs, parent)
		}
	}
	if err == nil {
		t, err = openTables(d.fs, path, false, d.opts)
	}
	if err == nil {
		err = writeTemp(d.fs, d.dir, baseName, next.format())
	}
	if err == nil {
		return t, nil
	}
	if t != nil {
		err = errors.Join(err, t.close())
	}
	return nil, errors.Join(err, d.fs.RemoveAll(path))
}

// finishInstall does for the log what an Install may not have come to.
func (d *Data) finishInstall(log *Log) error {
	if log.First()-1 >= d.base.index {
		return nil
	}
	_, err := log.reset(d.base.index, d.base.term, d.base.hard, nil)
	return err
}

// tidyStates removes the states that are not the one that counts.
func (d *Data) tidyStates() error {
	names, err := d.fs.List(d.dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, isState := stateNumber(name); !isState || name == d.base.state {
			continue
		}
		if err := d.fs.RemoveAll(d.path(name)); err != nil {
			return err
		}
	}
	return nil
}
