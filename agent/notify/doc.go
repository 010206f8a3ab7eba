// Package notify tells an operator what should wake or worry them: changes of the level, and what makes ctguard do
// less than it should, which may end in a lock-out. A program of theirs is started, or a URL is posted to.
//
// Whoever tells never waits: what can't be sent yet waits in a bounded queue, and what does not fit is counted. Notices
// go out one at a time and not often; what happened meanwhile is in the next one.
//
// What a caller can get wrong: nothing is sent before [Notifier.Run] runs, and what is left when it ends is not sent.
package notify
