package persist

// Sure is the last entry of those found when the log was opened of which it is
// known that they were on disk when the process before wrote something more: a
// Sync that covers it had returned. Of those behind it some may have come to the
// disk by themselves.
func (l *Log) Sure() uint64 { return l.sure }

// MakeSure returns when the log itself says, on disk, that all is there that was
// appended before the call: when it is opened next Sure is not less than Last is
// now. It takes a sync more than Sync does. Its errors are those of Append and
// Sync.
func (l *Log) MakeSure() error {
	if err := l.Sync(); err != nil {
		return err
	}
	if err := l.writeHard(); err != nil {
		return err
	}
	return l.Sync()
}

// foundType is the type of a seal or head that is written now. Needs appending.
func (l *Log) foundType() uint8 {
	if l.found {
		return typeFound
	}
	return 0
}

// writeHard appends the hard state as it is: as each record it says how much was
// on disk before it. An older program reads it too.
func (l *Log) writeHard() error {
	l.appending.Lock()
	defer l.appending.Unlock()
	hard := l.HardState()
	if hard == nil {
		hard = []byte{}
	}
	return l.append(nil, hard)
}
