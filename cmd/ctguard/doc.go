// Command ctguard keeps a host's connection-tracking table from filling up: the agent, and the commands with
// which operators ask it and tell it what to do. One file is one command; what they do lives in agent/.
//
// What can go wrong here: commands that work in a network namespace themselves go there by executing the program
// anew, so nothing may be changed before that; see enter.
package main
