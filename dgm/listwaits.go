package dgm

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/gearsfs/gearsfs/gears"
	"github.com/gearsfs/gearsfs/wire"
)

// nearKeysMax bounds the existing keys that a waiting one is compared with.
const nearKeysMax = 1000

// listWaits describes what waits, oldest first, and names existing keys that
// look like misspellings of those waited for.
func (v *Volume) listWaits() (*wire.Response, error) {
	v.mu.Lock()
	var waits []gears.Wait
	for _, o := range v.waits.all() {
		w := gears.Wait{
			Session: o.sess.id, Client: o.sess.client, Op: o.kind(), Path: o.path, Ino: o.ino,
			Keys: slices.Clone(o.keys), Since: o.since,
		}
		if w.Path == "" {
			w.Path = fmt.Sprintf("ino %d", o.ino)
		}
		for _, waiter := range o.waiters {
			w.Passed += waiter.Passed()
		}
		waits = append(waits, w)
	}
	v.mu.Unlock()
	slices.SortStableFunc(waits, func(a, b gears.Wait) int { return a.Since.Compare(b.Since) })
	resp := &wire.Response{}
	for _, w := range waits {
		if w.Ino != 0 && w.Op != "put" {
			near, err := v.nearKeys(w.Ino, w.Keys)
			if err != nil {
				return nil, err
			}
			w.Near = near
		}
		resp.Waits = append(resp.Waits, waitToWire(w))
	}
	return resp, nil
}

// nearKeys returns the keys of a file that a typing error or two turn into one
// of keys, nearest first.
func (v *Volume) nearKeys(ino gears.Ino, keys []gears.Key) ([]gears.Key, error) {
	infos, err := v.machine.ListStreams(ino, "", nearKeysMax, gears.Root)
	if err != nil {
		if gears.CodeOf(err) == gears.ErrStale.Code || gears.CodeOf(err) == gears.ErrNotFound.Code {
			return nil, nil // removed meanwhile
		}
		return nil, err
	}
	distances := make(map[gears.Key]int)
	var near []gears.Key
	for _, info := range infos {
		if slices.Contains(keys, info.Key) {
			continue
		}
		for _, key := range keys {
			d := editDistance(string(key), string(info.Key))
			if d > 2 || 2*d >= len(key) {
				continue
			}
			if old, ok := distances[info.Key]; !ok {
				near = append(near, info.Key)
				distances[info.Key] = d
			} else {
				distances[info.Key] = min(old, d)
			}
		}
	}
	slices.SortStableFunc(near, func(a, b gears.Key) int { return cmp.Compare(distances[a], distances[b]) })
	return near, nil
}

// editDistance counts the bytes to insert, delete, replace or swap with their
// neighbour to turn a into b (optimal string alignment).
func editDistance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

// waitingOn counts the takes and peeks that wait at a stream.
func (v *Volume) waitingOn(ino gears.Ino, key gears.Key) uint32 {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.waits.spot(ino, key)
	if s == nil {
		return 0
	}
	return uint32(s.takes.Len() + s.peeks.Len())
}

// checkRemote returns gears.ErrInvalid where a remote can't be named so, or its
// addresses are none.
func checkRemote(name, addrs string) error {
	if gears.Key(name).Check() != nil || slices.ContainsFunc([]byte(name), func(b byte) bool { return b == ':' || b == ' ' }) {
		return gears.ErrInvalid.Because("%q is not a remote's name: it is like a key, without ':' and spaces", name)
	}
	if addrs == "" {
		return nil
	}
	_, err := newDialRoute(addrs, RemoteOptions{})
	return err
}
