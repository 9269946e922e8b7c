#!/usr/bin/env bash
# Taibai in DevStack. Sourced by stack.sh, unstack.sh and clean.sh with the mode and the phase.

_XTRACE_TAIBAI=$(set +o | grep xtrace)
set +o xtrace

# shellcheck source=devstack/lib/taibai
source "$(dirname "${BASH_SOURCE[0]}")/lib/taibai"

$_XTRACE_TAIBAI

if is_service_enabled taibai; then
    if [[ "$1" == "stack" && "$2" == "pre-install" ]]; then
        echo_summary "Looking for what Taibai needs"
        check_taibai_build
        install_taibai_docker

    elif [[ "$1" == "stack" && "$2" == "install" ]]; then
        echo_summary "Installing Taibai"
        install_taibai
        install_taibai_images
        install_taibai_client

    elif [[ "$1" == "stack" && "$2" == "post-config" ]]; then
        echo_summary "Configuring Taibai"
        configure_taibai
        create_taibai_accounts
        if [[ "$(trueorfalse True TAIBAI_USE_PROXY)" == "True" ]]; then
            configure_taibai_proxy
        fi

    elif [[ "$1" == "stack" && "$2" == "extra" ]]; then
        echo_summary "Starting Taibai"
        init_taibai
        start_taibai
        register_taibai_runtimes

    elif [[ "$1" == "stack" && "$2" == "test-config" ]]; then
        if is_service_enabled tempest; then
            echo_summary "Configuring Tempest for Taibai"
            configure_taibai_tempest
        fi

    elif [[ "$1" == "unstack" ]]; then
        stop_taibai
        remove_taibai_workers
        remove_taibai_proxy
        remove_taibai_data
        remove_taibai_accounts

    elif [[ "$1" == "clean" ]]; then
        clean_taibai
    fi
fi
